//! The training steps of `torch_step.py` in burn, on its CPU back end `flex`: f32, the `direct` form of modulation.
//!
//! Gradients are clipped tensor by tensor, since burn clips no global norm, and no average of the parameters is kept: both favour it.

mod common;

use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Initializer, Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::{AdamConfig, AdamWConfig, GradientsParams};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Distribution, Tensor};

use common::{Case, TIME_CHANNELS, frequencies, serve};

const EPS: f64 = 1e-6;

#[derive(Module, Debug)]
struct Block {
    norm: LayerNorm,
    first: Linear,
    second: Linear,
    modulation: Linear,
}

#[derive(Module, Debug)]
struct VelocityMlp {
    time: [Linear; 2],
    input: Linear,
    blocks: Vec<Block>,
    modulation: Linear,
    output: Linear,
}

#[derive(Module, Debug)]
struct Latents {
    y: Param<Tensor<2>>,
}

fn linear(from: usize, to: usize, device: &Device) -> Linear {
    // As in a trained network: zeros have speeds of their own.
    LinearConfig::new(from, to).with_initializer(Initializer::Normal { mean: 0.0, std: 0.02 }).init(device)
}

fn normalised(x: Tensor<2>) -> Tensor<2> {
    let (variance, mean) = x.clone().var_mean_bias(1);
    (x - mean) / (variance + EPS).sqrt()
}

impl VelocityMlp {
    fn new(case: &Case, device: &Device) -> Self {
        let width = case.width;
        let block = |_| Block {
            norm: LayerNormConfig::new(width).with_epsilon(EPS).init(device),
            first: linear(width, width, device),
            second: linear(width, width, device),
            modulation: linear(width, 3 * width, device),
        };
        Self {
            time: [linear(TIME_CHANNELS, width, device), linear(width, width, device)],
            input: linear(case.channels, width, device),
            blocks: (0..case.depth).map(block).collect(),
            modulation: linear(width, 2 * width, device),
            output: linear(width, case.channels, device),
        }
    }

    fn forward(&self, x_t: Tensor<2>, t: Tensor<2>, omega: Tensor<2>) -> Tensor<2> {
        let phase = t * omega;
        let embedding = Tensor::cat(vec![phase.clone().cos(), phase.sin()], 1);
        let c = silu(self.time[1].forward(silu(self.time[0].forward(embedding))));
        let mut h = self.input.forward(x_t);
        for block in &self.blocks {
            let [shift, scale, gate] = parts(block.modulation.forward(c.clone()));
            let n = block.norm.forward(h.clone()) * (scale + 1.0) + shift;
            h = h + gate * block.second.forward(silu(block.first.forward(n)));
        }
        let [shift, scale] = parts(self.modulation.forward(c));
        self.output.forward(normalised(h) * (scale + 1.0) + shift)
    }

    fn loss(&self, data: Tensor<2>, flow_mul: usize, omega: Tensor<2>) -> Tensor<1> {
        let device = data.device();
        let data = data.repeat_dim(0, flow_mul);
        let [rows, channels] = data.dims();
        let t = Tensor::<2>::random([rows, 1], Distribution::Uniform(0.0, 1.0), &device);
        let noise = Tensor::<2>::random([rows, channels], Distribution::Normal(0.0, 1.0), &device);
        let target = data - noise.clone();
        let x_t = noise + target.clone() * t.clone();
        (self.forward(x_t, t, omega) - target).powi_scalar(2).mean()
    }
}

fn parts<const N: usize>(x: Tensor<2>) -> [Tensor<2>; N] {
    x.chunk(N, 1).try_into().expect("as many chunks as were asked for")
}

fn main() {
    let case = Case::from_arguments();
    let device = Device::flex().autodiff();
    let omega = Tensor::<1>::from_floats(frequencies().as_slice(), &device).unsqueeze_dim::<2>(0);
    let data = Tensor::<2>::random([case.samples, case.channels], Distribution::Normal(0.0, 1.0), &device);
    let mut net = VelocityMlp::new(&case, &device);
    if case.align {
        let net = net.no_grad();
        let mut latents = Latents { y: Param::from_tensor(data) };
        let mut adam = AdamConfig::new().init();
        return serve(|| {
            let loss = net.loss(latents.y.val(), case.flow_mul, omega.clone());
            let grads = GradientsParams::from_grads(loss.backward(), &latents);
            latents = adam.step(1e-2, latents.clone(), grads);
            loss.into_scalar()
        });
    }
    let config = AdamWConfig::new().with_beta_2(0.95).with_epsilon(1e-8).with_weight_decay(1e-4);
    let mut adam = config.with_grad_clipping(Some(GradientClippingConfig::Norm(1.0))).init();
    serve(|| {
        let loss = net.loss(data.clone(), case.flow_mul, omega.clone());
        let grads = GradientsParams::from_grads(loss.backward(), &net);
        net = adam.step(1e-4, net.clone(), grads);
        loss.into_scalar()
    });
}
