//! The training steps of `torch_step.py` in candle: f32, the `direct` form of modulation.

mod common;

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear};

use common::{Case, TIME_CHANNELS, frequencies, serve};

const EPS: f64 = 1e-6;
/// Weight of the parameters in their average.
const EMA: f64 = 1e-4;
/// Layers of a block: two of its MLP, one of its modulation.
const LAYERS: [&str; 3] = ["mlp.0", "mlp.2", "adaLN_modulation.1"];

struct Block {
    norm: (Tensor, Tensor),
    first: Linear,
    second: Linear,
    modulation: Linear,
}

struct VelocityMlp {
    omega: Tensor,
    time: [Linear; 2],
    input: Linear,
    blocks: Vec<Block>,
    modulation: Linear,
    output: Linear,
}

/// Without weight and bias; candle's own fused one has no backward.
fn normalised(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(variance + EPS)?.sqrt()?)
}

impl VelocityMlp {
    fn new(case: &Case, vb: VarBuilder) -> Result<Self> {
        let width = case.width;
        let blocks = (0..case.depth).map(|i| {
            let vb = vb.pp(format!("res_blocks.{i}"));
            let norm = (vb.get(width, "in_ln.weight")?, vb.get(width, "in_ln.bias")?);
            let [first, second, modulation] = LAYERS.map(|name| vb.pp(name));
            Ok(Block {
                norm,
                first: linear(width, width, first)?,
                second: linear(width, width, second)?,
                modulation: linear(width, 3 * width, modulation)?,
            })
        });
        Ok(Self {
            omega: Tensor::new(frequencies(), vb.device())?.unsqueeze(0)?,
            time: [
                linear(TIME_CHANNELS, width, vb.pp("time_embed.mlp.0"))?,
                linear(width, width, vb.pp("time_embed.mlp.2"))?,
            ],
            input: linear(case.channels, width, vb.pp("input_proj"))?,
            blocks: blocks.collect::<Result<_>>()?,
            modulation: linear(width, 2 * width, vb.pp("final_layer.adaLN_modulation.1"))?,
            output: linear(width, case.channels, vb.pp("final_layer.linear"))?,
        })
    }

    fn forward(&self, x_t: &Tensor, t: &Tensor) -> Result<Tensor> {
        let phase = t.unsqueeze(1)?.broadcast_mul(&self.omega)?;
        let embedding = Tensor::cat(&[phase.cos()?, phase.sin()?], 1)?;
        let c = self.time[1].forward(&self.time[0].forward(&embedding)?.silu()?)?.silu()?;
        let mut h = self.input.forward(x_t)?;
        for block in &self.blocks {
            let modulation = block.modulation.forward(&c)?.chunk(3, 1)?;
            let (gamma, beta) = &block.norm;
            let n = normalised(&h)?.broadcast_mul(gamma)?.broadcast_add(beta)?;
            let n = ((n * (&modulation[1] + 1.0)?)? + &modulation[0])?;
            let u = block.second.forward(&block.first.forward(&n)?.silu()?)?;
            h = (h + (&modulation[2] * u)?)?;
        }
        let modulation = self.modulation.forward(&c)?.chunk(2, 1)?;
        let n = ((normalised(&h)? * (&modulation[1] + 1.0)?)? + &modulation[0])?;
        self.output.forward(&n)
    }

    fn loss(&self, data: &Tensor, flow_mul: usize) -> Result<Tensor> {
        let data = data.repeat((flow_mul, 1))?;
        let t = Tensor::rand(0f32, 1f32, data.dim(0)?, data.device())?;
        let noise = data.randn_like(0.0, 1.0)?.detach();
        let target = (&data - &noise)?;
        let x_t = (&noise + target.broadcast_mul(&t.unsqueeze(1)?)?)?;
        (self.forward(&x_t, &t)? - target)?.sqr()?.mean_all()
    }
}

/// Scales gradients to a global norm of at most 1.
fn clip(vars: &[Var], grads: &mut GradStore) -> Result<()> {
    let squares = vars.iter().filter_map(|v| grads.get(v)).map(|g| g.sqr()?.sum_all());
    let squares: Vec<Tensor> = squares.collect::<Result<_>>()?;
    let norm = Tensor::stack(&squares, 0)?.sum_all()?.sqrt()?.to_scalar::<f32>()? as f64;
    let factor = (1.0 / (norm + 1e-6)).min(1.0);
    for var in vars {
        if let Some(g) = grads.remove(var) {
            grads.insert(var, (g * factor)?);
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let case = Case::from_arguments();
    let device = Device::Cpu;
    let map = VarMap::new();
    let net = VelocityMlp::new(&case, VarBuilder::from_varmap(&map, DType::F32, &device))?;
    let vars = map.all_vars();
    for var in &vars {
        var.set(&var.randn_like(0.0, 0.02)?)?; // as in a trained network: zeros have speeds of their own
    }
    let data = Tensor::randn(0f32, 1f32, (case.samples, case.channels), &device)?;
    if case.align {
        let latents = Var::from_tensor(&data)?;
        let rates = ParamsAdamW { lr: 1e-2, weight_decay: 0.0, ..Default::default() };
        let mut adam = AdamW::new(vec![latents.clone()], rates)?;
        // Parameters as constants: candle follows every variable that it meets.
        let named = map.data().lock().expect("no other thread");
        let constants = named.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        let frozen = VarBuilder::from_tensors(constants, DType::F32, &device);
        let net = VelocityMlp::new(&case, frozen)?;
        serve(|| {
            let mut step = || -> Result<f32> {
                let loss = net.loss(latents.as_tensor(), case.flow_mul)?;
                adam.step(&loss.backward()?)?;
                loss.to_scalar()
            };
            step().expect("a step")
        });
        return Ok(());
    }
    let mut ema: Vec<Tensor> = vars.iter().map(|v| v.as_detached_tensor().copy()).collect::<Result<_>>()?;
    let rates = ParamsAdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 1e-4 };
    let mut adam = AdamW::new(vars.clone(), rates)?;
    serve(|| {
        let mut step = || -> Result<f32> {
            let loss = net.loss(&data, case.flow_mul)?;
            let mut grads = loss.backward()?;
            clip(&vars, &mut grads)?;
            adam.step(&grads)?;
            for (ema, var) in ema.iter_mut().zip(&vars) {
                *ema = ((&*ema * (1.0 - EMA))? + (var.as_detached_tensor() * EMA)?)?;
            }
            loss.to_scalar()
        };
        step().expect("a step")
    });
    Ok(())
}
