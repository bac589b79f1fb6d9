"""What --data, --model and --augment may name: without torch, for `lsam train --help`."""

DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "folder")
MODELS = ("mlp", "cnn", "cnn-tiny", "resnet18", "wrn16-8", "vgg16", "vit")
AUGMENTS = ("none", "standard")
