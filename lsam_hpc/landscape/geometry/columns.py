"""Names of the values of a surface, in files and figures."""

LOSS, ERROR, SAM, REGULARISED, SMOOTHED, SMOOTHED_ERROR, EFFECTIVE = (
    "loss",
    "error",
    "loss_sam",
    "loss_regularised",
    "loss_smoothed",
    "loss_smoothed_se",
    "loss_smoothed_ess",
)
LOSSES = (LOSS, SAM, REGULARISED, SMOOTHED)  # values in units of the loss, which figures show on one scale
