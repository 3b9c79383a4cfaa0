//! Names of the reference that are not keys here: options refused because they are unsound, and keys named otherwise.

/// Options of the reference that no run should use, each with the reason (FEATURES 1.4 and 6.1).
const REFUSED: &[(&str, &str)] = &[
    (
        "norm_v",
        "it forces each velocity to norm √d, while the target of unit-variance data has norm √(2d): the network could \
         never fit it, and every velocity would be biased",
    ),
    (
        "moving_avg_std",
        "the reference multiplies by the standard deviation and adds the row mean where it should divide and subtract; \
         use `data.standardise = true` for what it meant",
    ),
    (
        "seperate_fitting",
        "predicting noise − v and regressing on the target is algebraically the same loss and gradient as the plain one, \
         and it silently ignored a detached velocity; leave it out",
    ),
    (
        "flow_loss_trainable",
        "the network would chase the very latents that are pulled to it, and its clipped gradients were those thrown \
         away; train the prior first with `pretrain`, stage 2 keeps it frozen, or set align.joint = true and know why",
    ),
];

/// Keys of the reference, or of habit, and what they are called here.
const RENAMED: &[(&str, &str)] = &[
    ("adaptive_weight", "align.adaptive"),
    ("batch_size", "train.batch"),
    ("betas", "optim.beta1` and `optim.beta2"),
    ("ckpt_every", "train.checkpoint_every"),
    ("data_path", "data.path"),
    ("detach_pred_v", "align.gradient = \"detached\"` with `flow.weight = \"kl\""),
    ("ema_decay", "optim.ema"),
    ("epochs", "train.steps"),
    ("flow_adaptive_weight", "align.adaptive"),
    ("flow_target_proj", "align.projection"),
    ("flow_loss_weight", "align.lambda"),
    ("global_batch_size", "train.batch"),
    ("global_seed", "seed"),
    ("grad_clip", "optim.clip"),
    ("learning_rate", "optim.lr"),
    ("lr_min", "optim.schedule.min_lr_ratio"),
    ("max_grad_norm", "optim.clip"),
    ("max_steps", "train.steps"),
    ("min_lr", "optim.schedule.min_lr_ratio"),
    ("mixed_precision", "dtype"),
    ("optimizer", "optim.kind"),
    ("pretrained_path", "align.prior"),
    ("std_loss_weight", "align.std_weight"),
    ("target_channels", "model.channels"),
    ("z_channels", "model.cond"),
];

/// Returns why an option of the reference is refused, by the last word of its key.
pub fn reason(leaf: &str) -> Option<&'static str> {
    let leaf = if leaf == "separate_fitting" { "seperate_fitting" } else { leaf };
    REFUSED.iter().find(|(name, _)| *name == leaf).map(|(_, reason)| *reason)
}

/// Returns what a key of the reference is called here, by its last word.
pub fn renamed(leaf: &str) -> Option<&'static str> {
    RENAMED.iter().find(|(name, _)| *name == leaf).map(|(_, key)| *key)
}
