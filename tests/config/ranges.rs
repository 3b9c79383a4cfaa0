//! Values out of range, and keys that contradict each other.

use flowprior::train::config::{Gradient, TimeSampling, Weight};

use crate::{Outcome, file, load, refusal, sets};

#[test]
fn values_out_of_range_and_contradictions_are_refused_in_one_sentence() {
    let cases: &[(&[&str], &str)] = &[
        (&["tf32=true", "dtype=bf16"], "tf32 = true is for dtype f32 on a CUDA device, but dtype is bf16"),
        (&["device=gpu"], "device must be `auto`, `cpu` or `cuda[:n]`, but is `gpu`"),
        (&["device=cuda:x"], "device must be"),
        (&["model.width=0"], "model.width must be at least 1, but is 0"),
        (&["model.depth=0"], "model.depth must be"),
        (&["model.time_scale=0"], "model.time_scale must be greater than 0, but is 0"),
        (&["model.time_scale=nan"], "model.time_scale must be greater than 0, but is NaN"),
        (&["model.modulation=nodes=1"], "must have R from 2 to 64, but has 1"),
        (&["model.modulation=nodes", "model.cond=8"], "needs model.cond = 0"),
        (&["model.modulation=groups=0"], "the number of groups must divide the 512 rows"),
        (&["model.modulation=groups=7"], "the number of groups must divide the 512 rows"),
        (&["model.modulation=groups=512", "train.micro_batches=2"], "divide the 256 rows of a micro-batch"),
        (
            &["model.classes=10"],
            "model.classes is for model.kind = \"dit\"; labels of an MLP are a condition",
        ),
        (&["model.qk_norm=true"], "model.qk_norm is for model.kind = \"dit\""),
        (&["model.kind=dit", "model.cond=3"], "a DiT takes labels: set model.classes"),
        (&["model.kind=dit", "model.post_norm=true"], "model.post_norm is for model.kind = \"mlp\""),
        (&["model.kind=dit", "model.modulation=nodes"], "a DiT evaluates its modulation once a sample"),
        (&["model.kind=dit", "model.classes=2", "model.modulation=groups=2"], "would share a label"),
        (&["model.kind=dit", "model.width=96", "model.heads=5"], "into heads of an even width"),
        (&["model.kind=dit", "model.width=96", "model.heads=32"], "into heads of an even width"),
        (
            &["model.kind=dit", "model.label_dropout=1.0"],
            "model.label_dropout must be from 0 to 0.999, but is 1",
        ),
        (&["model.kind=dit", "model.patch=0"], "model.patch must be at least 1"),
        (&["model.kind=dit", "model.image=[1,28,30]", "model.patch=4"], "sides that model.patch = 4 divides"),
        (
            &["model.kind=dit", "model.image=[1,8,8]", "model.tokens=4"],
            "model.image as images: set one of them",
        ),
        (&["model.kind=dit", "model.cond_channels=1", "flow.norm_target=true"], "leave one of them out"),
        (&["model.kind=dit", "model.inpaint=true", "flow.norm_target=true"], "leave one of them out"),
        (&["model.kind=dit", "model.inpaint=true", "model.cond_channels=2"], "set one of them"),
        (&["model.kind=dit", "model.inpaint=true", "model.tokens=4"], "model.inpaint as images"),
        (&["model.kind=dit", "model.cond_rescale=2"], "set model.cond_channels"),
        (&["model.kind=dit", "model.inpaint_whole=1.5"], "model.inpaint_whole"),
        (&["model.inpaint=true"], "model.kind = \"dit\""),
        (&["model.kind=dit", "model.size=S", "model.width=512"], "has width 384, but model.width is 512"),
        (&["flow.flow_mul=0"], "flow.flow_mul must be at least 1"),
        (&["flow.flow_mul=4097"], "flow.flow_mul must be at most 4096, but is 4097"),
        (&["flow.time_min=-0.1"], "flow.time_min must be from 0 to 1, but is -0.1"),
        (&["flow.time_min=0.5", "flow.time_max=0.5"], "flow.time_min must be less than flow.time_max"),
        (&["flow.logit_std=0"], "flow.logit_std must be greater than 0"),
        (&["flow.logit_mean=inf"], "flow.logit_mean must be finite"),
        (&["flow.weight_clip=1"], "flow.weight_clip must be between 0 and 1, but is 1"),
        (&["flow.weight=kl", "flow.weight_clip=0.5", "flow.time_min=0.5"], "or no time has a weight"),
        (&["flow.weight=table"], "flow.weight_table must have 2 to 4096 values, but has 0"),
        (&["flow.weight=table", "flow.weight_table=[1]"], "must have 2 to 4096 values, but has 1"),
        (
            &["flow.weight=table", "flow.weight_table=[1, -2.0]"],
            "flow.weight_table[1] must be from 0 to 1000000000000, but is -2",
        ),
        (&["flow.weight=table", "flow.weight_table=[nan, 1]"], "flow.weight_table[0] must be from 0"),
        (&["flow.weight=table", "flow.weight_table=[1, inf]"], "flow.weight_table[1] must be from 0"),
        (&["flow.weight=table", "flow.weight_table=[0, 0]"], "so no time has a weight"),
        (
            &["flow.weight=table", "flow.weight_table=[1, 1, 0, 0, 0]", "flow.time_min=0.5"],
            "flow.weight_table is 0 from flow.time_min to flow.time_max",
        ),
        (&["flow.weight_table=[1, 2]"], "flow.weight_table is for flow.weight = \"table\""),
        (&["flow.weight_table=3"], "flow.weight_table"),
        (&["flow.time=important"], "unknown variant `important`"),
        (&["flow.control_variate=true"], "flow.control_variate needs flow.weight = \"likelihood\""),
        (&["flow.control_variate=true", "flow.weight=kl"], "no other loss is a log-likelihood"),
        (
            &["flow.control_variate=true", "flow.weight=likelihood", "flow.time=logit-normal"],
            "times that are not logit-normal",
        ),
        (&["flow.unit_norm=true"], "flow.unit_norm needs flow.norm_target = true"),
        (&["optim.lr=0"], "optim.lr must be greater than 0"),
        (&["optim.beta1=1"], "optim.beta1 must be at least 0 and less than 1, but is 1"),
        (&["optim.beta2=-0.1"], "optim.beta2 must be"),
        (&["optim.eps=0"], "optim.eps must be greater than 0"),
        (&["optim.weight_decay=-1"], "optim.weight_decay must be at least 0"),
        (&["optim.clip=-1"], "optim.clip must be at least 0"),
        (&["optim.nesterov=true"], "optim.nesterov needs optim.kind = \"sgd\""),
        (&["optim.ema=[1.0]"], "optim.ema must be at least 0 and less than 1"),
        (&["optim.ema=[0.9, 0.9]"], "optim.ema names the decay 0.9 twice"),
        (&["optim.ema=[0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8]"], "may name 8 decays at most"),
        (&["optim.rounding=stochastic"], "needs dtype bf16 or f16"),
        (&["optim.schedule.warmup_lr=-1"], "optim.schedule.warmup_lr must be at least 0"),
        (&["optim.schedule.min_lr_ratio=1.5"], "optim.schedule.min_lr_ratio must be from 0 to 1"),
        (
            &["optim.schedule.kind=wsd", "train.steps=100"],
            "take 2500 + 10 steps, more than the 100 of train.steps",
        ),
        (&["scaler.growth=1"], "scaler.growth must be greater than 1"),
        (&["scaler.backoff=1"], "scaler.backoff must be between 0 and 1"),
        (&["scaler.interval=0"], "scaler.interval must be at least 1"),
        (&["scaler.init=0.5"], "scaler.init must be from 1 to"),
        (&["scaler.min=0"], "scaler.min must be greater than 0"),
        (&["train.steps=0"], "train.steps must be at least 1"),
        (&["train.batch=0"], "train.batch must be at least 1"),
        (&["train.micro_batches=0"], "train.micro_batches must be at least 1"),
        (&["train.micro_batches=3"], "train.micro_batches must divide train.batch = 512, but is 3"),
        (
            &["train.snapshots_every=5"],
            "keeps free latents: it needs stage 2 with align.target = \"latents\"",
        ),
        (
            &["stage=align", "align.target=autoencoder", "train.snapshots_every=5"],
            "train.snapshots_every = 5 keeps free latents",
        ),
        (&["stage=align", "train.micro_batches=3"], "train.micro_batches must divide align.latents = 1000"),
        (&["train.log_every=0"], "train.log_every must be at least 1"),
        (&["train.keep=0"], "train.keep must be at least 1"),
        (&["train.max_skipped=0"], "train.max_skipped must be at least 1"),
        (&["stage=align", "align.latents=0"], "align.latents must be at least 1"),
        (&["stage=align", "align.init_std=0"], "align.init_std must be greater than 0"),
        (&["stage=align", "align.lambda=-1"], "align.lambda must be at least 0"),
        (&["stage=align", "align.std_weight=-1"], "align.std_weight must be at least 0"),
        (&["stage=align", "align.gradient=detached"], "needs flow.weight = \"kl\""),
        (&["stage=align", "align.gradient=detached", "flow.weight=likelihood"], "needs flow.weight = \"kl\""),
        (
            &["stage=align", "align.gradient=centred"],
            "align.gradient = \"centred\" needs flow.weight = \"kl\"",
        ),
        (
            &["stage=align", "align.gradient=centred", "flow.weight=table", "flow.weight_table=[1, 2]"],
            "or a table that is 0 at t = 0",
        ),
        (&["stage=align", "align.repulsion=-1"], "align.repulsion must be at least 0, but is -1"),
        (&["stage=align", "align.sliced_wasserstein=nan"], "align.sliced_wasserstein must be at least 0"),
        (&["stage=align", "align.divergence=-0.5"], "align.divergence must be at least 0, but is -0.5"),
        (&["stage=align", "align.targets=0"], "align.targets must be at least 1, but is 0"),
        (&["stage=align", "align.projections=0"], "align.projections must be at least 1, but is 0"),
        (
            &["stage=align", "align.repulsion=1", "align.latents=6", "align.repulsion_k=6"],
            "align.repulsion_k must be from 1 to 5, for the 6 latents of a batch (align.latents), but is 6",
        ),
        (
            &["stage=align", "align.repulsion=1", "align.repulsion_k=101"],
            "must be from 1 to 100, for the 1000",
        ),
        (&["stage=align", "align.repulsion=1", "align.repulsion_k=0"], "align.repulsion_k must be from 1"),
        (&["stage=align", "align.repulsion_start=9"], "both must be greater than 0"),
        (&["stage=align", "align.repulsion=1", "align.repulsion_start=9"], "both must be greater than 0"),
        (
            &["stage=align", "align.repulsion=1", "align.repulsion_start=-1"],
            "align.repulsion_start must be at",
        ),
        (&["stage=align", "align.repulsion=1", "flow.norm_target=true"], "needs flow.norm_target = false"),
        (&["stage=align", "align.divergence=1", "dtype=bf16"], "lost in bf16: it needs dtype f32"),
        (
            &[
                "stage=align",
                "align.target=autoencoder",
                "align.sliced_wasserstein=1",
                "train.micro_batches=2",
            ],
            "looks at a whole batch of latents: it needs train.micro_batches = 1",
        ),
        (&["stage=align", "align.adaptive=true"], "align.adaptive needs align.target = \"autoencoder\""),
        (&["stage=align", "align.autoencoder.hidden=[8, 0]"], "align.autoencoder.hidden must be at least 1"),
        (&["stage=align", "align.autoencoder.latent=0"], "align.autoencoder.latent must be"),
        (&["stage=align", "align.autoencoder.tokens=0"], "align.autoencoder.tokens must be"),
    ];
    for (given, words) in cases {
        let message = refusal(sets(given));
        assert!(message.contains(words) && !message.contains('\n'), "{given:?}: {message}");
    }
}

#[test]
fn the_detached_gradient_is_accepted_with_its_own_weight() -> Outcome {
    let c = sets(&["stage=align", "align.gradient=detached", "flow.weight=kl"])?;
    assert_eq!((c.align.gradient, c.flow.weight), (Gradient::Detached, Weight::Kl));
    assert!(c.align.prior().is_err());
    let table = ["flow.weight=table", "flow.weight_table=[0, 0.25, 3]", "flow.time=importance"];
    let c = sets(&[&["stage=align", "align.gradient=centred"], &table[..]].concat())?;
    assert_eq!(
        (c.align.gradient, c.flow.weight, c.flow.time),
        (Gradient::Centred, Weight::Table, TimeSampling::Importance)
    );
    assert_eq!(c.flow.weight_table, [0.0, 0.25, 3.0]);
    let (_dir, sources) = file(&c.to_toml()?)?;
    assert_eq!(load(&sources, &[])?, c);
    let c = sets(&["stage=align", "align.gradient=detached", "align.unsound=true"])?;
    assert_eq!((c.align.gradient, c.flow.weight), (Gradient::Detached, Weight::Uniform), "for experiments");
    Ok(())
}
