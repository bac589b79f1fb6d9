"""Options of `lsam train`: data, model, base optimizer, budget, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsam_hpc.errors import InputError
from lsam_hpc.options.option import COUNT, NOT_NEGATIVE, PART, POSITIVE, Range, option

IMAGE_SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "folder")
TEXT = "text"
DATASETS = (*IMAGE_SETS, TEXT)
BUILT_IN = ("digits", TEXT)  # data sets that need no --data-dir
MODELS = ("mlp", "cnn", "cnn-tiny", "resnet18", "wrn16-8", "vgg16", "vit")
TEXT_MODELS = ("gpt-tiny", "gpt-small")
CONTEXT = 128  # default of `context`
STRAGGLERS = "none, or some of RANK:FACTOR, spread:SIGMA, pause:CHANCE:SECONDS"
PROFILE = "FIRST:END"
IMAGES = Range(least=1, whole=True)


@dataclass(frozen=True)
class TrainingOptions:
    """The training job."""

    data: str = option("digits", f"data set: {', '.join(DATASETS)}, or your own MODULE:FUNCTION")
    data_dir: str | None = option(
        None, "directory with the data set's files as published; of text, a file or a folder of *.txt"
    )
    context: int = option(
        CONTEXT,
        "text: bytes per window, of which a mini-batch has --batch-size; the byte after each is predicted",
        IMAGES,
    )
    subset: int | None = option(
        None, "training images (text: windows) to use, the same fraction of each class; default: all", IMAGES
    )
    validation: int = option(
        0, "number of training images (text: windows) to hold out for testing, in place of the test set", COUNT
    )
    label_noise: float = option(0.0, "fraction of the training labels to replace by wrong labels", PART)
    data_seed: int = option(0, "seed of --subset, --validation and --label-noise, independent of --seed", COUNT)
    augment: Literal["none", "standard"] = option(
        "none", "standard: shift training images at random, and mirror them if the data set allows it"
    )
    cutout: int = option(0, "side of a random square to blank in each training image, in pixels", COUNT)
    adversarial: Literal["none", "conadv"] = option(
        "none", "conadv: train on adversarial images too, made one step ahead, with BatchNorm statistics of their own"
    )
    adversarial_epsilon: float = option(
        0.1, "largest change of a value in an adversarial image, in the units of the normalised images", NOT_NEGATIVE
    )
    model: str | None = option(
        None,
        f"model: {', '.join(MODELS)}, for text {' and '.join(TEXT_MODELS)}, or your own MODULE:FUNCTION; default: "
        "depends on --data",
    )
    initial_state: str | None = option(
        None, "file with the model's state_dict to start from, for example RUN/checkpoints/center.pt; default: random"
    )
    precision: Literal["float32", "bf16"] = option(
        "float32",
        "bf16: forward and backward passes in bfloat16 (torch.autocast); weights, gradients, optimizer, center and "
        "evaluation remain float32",
    )
    channels_last: bool = option(
        False, "store images and convolutions' weights with the channels last, the fastest order for bf16 on GPUs"
    )
    epochs: float = option(120.0, "passes over the training set, by all ranks together", POSITIVE)
    steps: int | None = option(None, "steps of all chains together, in place of --epochs", Range(least=1, whole=True))
    batch_size: int = option(32, "images (text: windows) per mini-batch of a rank", IMAGES)
    selection: Literal["none", "esam", "ausam"] = option(
        "none",
        "images of a mini-batch to compute gradients of. esam: in the second pass, those whose loss the ascent raises "
        "most; ausam: in both passes, random ones, by their loss changes in earlier steps",
    )
    selection_fraction: float = option(0.5, "fraction of a mini-batch that --selection chooses", Range(above=0, most=1))
    rho_from: float = option(
        0.0,
        "part of the steps in which rho is 0, so that they take one pass: SAM in the rest of training (late SAM)",
        Range(least=0, below=1),
    )
    optimizer: Literal["sgd", "lars", "tvlars", "lamb", "adamw"] = option(
        "sgd", "base optimizer; lars, tvlars and lamb scale their rates by the layers' norms"
    )
    lr: float = option(0.1, "learning rate", NOT_NEGATIVE)
    lr_scaling: Literal["none", "linear"] = option(
        "none", "linear: --lr is for 256 images per step, and is scaled by the images per step of a chain"
    )
    momentum: float = option(
        0.9, "momentum of sgd, lars and tvlars; lamb and adamw have betas of 0.9 and 0.999", Range(least=0, below=1)
    )
    weight_decay: float = option(5e-4, "weight decay of the base optimizer", NOT_NEGATIVE)
    lr_schedule: Literal["cosine", "constant"] = option("cosine", "learning rate as a function of the global step")
    warmup: float | None = option(
        None,
        "fraction of the steps in which the learning rate rises linearly; default: 0.05, and 0 with tvlars, which has "
        "its own factor in place of a warm-up",
        Range(least=0, below=1),
    )
    tvlars_lambda: float = option(
        1e-3, "tvlars: steepness of the fall of its layer-wise rates, per step of a chain", NOT_NEGATIVE
    )
    tvlars_delay: int = option(0, "tvlars: steps of a chain until the middle of the fall", COUNT)
    tvlars_floor: float = option(0.0, "tvlars: what remains of the layer-wise rates after the fall", NOT_NEGATIVE)
    clip_coordinates: float = option(
        0.0,
        "fraction of the gradient's coordinates, those of largest magnitude, to clip to the largest of the others",
        Range(least=0, below=1),
    )
    shard: Literal["none", "fsdp2"] = option(
        "none",
        "fsdp2: the --group-size ranks of a chain each hold a part of the model and of all its states (torch's "
        "fully_shard); chains then exchange part by part",
    )
    synchronous: bool = option(False, "data parallel: all ranks form one chain, and the center is its sample")
    synchronous_start: float = option(
        0.0,
        "first part of the steps, which all ranks take as one data-parallel chain; then the chains part (post-local "
        "SGD)",
        PART,
    )
    reduce: Literal["auto", "horovod", "mpi"] = option(
        "auto",
        "library that averages the gradients of a group and in the synchronous start; auto: Horovod if it is installed",
    )
    stragglers: str = option("none", f"artificially slowed ranks: {STRAGGLERS}")
    resume: Literal["no", "auto", "must"] = option(
        "no", "continue from the newest checkpoint in --out; auto: if there is one; must: fail if there is none"
    )
    checkpoint_every: str = option("auto", "steps of all ranks between checkpoints; auto: from --mtbf; none")
    checkpoint_keep: int = option(2, "number of checkpoints to keep", Range(least=1, whole=True))
    mtbf: float = option(24.0, "mean hours between failures of the job, for --checkpoint-every auto", POSITIVE)
    stop_signals: str = option("USR1,TERM", "signals at which the job writes a checkpoint and exits with code 3")
    end_margin: float = option(120.0, "seconds before the time limit at which the job is stopped", NOT_NEGATIVE)
    requeue: int = option(0, "largest number of times that a stopped job is requeued (Slurm)", COUNT)
    on_lost: Literal["continue", "stop"] = option(
        "continue", "with failed ranks: continue without them, or write a checkpoint and stop"
    )
    track: str = option(
        "none",
        "some of csv, tensorboard, wandb, mlflow: rank 0's numbers, once per second, in the run directory; wandb and "
        "mlflow use a server only if their environment variables say so; none",
    )
    curvature_every: int = option(
        0,
        "local steps between measurements of the largest Hessian eigenvalue of a chain's sample, for the log; 0: none",
        COUNT,
    )
    curvature_images: int = option(256, "training images, the first ones, to measure it on", IMAGES)
    profile: str = option(
        "none", f"local steps of each rank to trace with PyTorch's profiler: {PROFILE}, for example 10:20; none"
    )
    device: Literal["auto", "cpu", "cuda", "xpu"] = option(
        "auto", "device to train on; cuda also stands for ROCm; with several, a rank takes the one next to its cores"
    )
    out: str | None = option(None, "run directory; default: runs/DATA-DATE")
    overwrite: bool = option(False, "replace the run in --out")


def check_text(options: TrainingOptions) -> None:
    """Raise InputError for the first option that needs images: for data that are text."""
    only = {"augment": "none", "cutout": 0, "adversarial": "none", "channels_last": False, "selection": "none"}
    for name, value in only.items():
        if (chosen := getattr(options, name)) != value:
            raise InputError(f"{name}: expected {value} with text, found {chosen}")
