//! The network: velocity, input gradient and every parameter gradient.

use flowprior::nn::{Form, Keep, Mlp, TimeConvention};
use flowprior::{FloatX, Result};
use half::{bf16, f16};

use super::engine::{Inputs, device, isas, pass};
use super::fixture::{self, Fixture};
use super::{F32, Tensors, assert_all_close, forms, network, optional};

const CASES: [&str; 4] = ["plain", "cond", "post_norm", "time_scale"];

fn inputs(case: &Fixture) -> Inputs {
    Inputs { x_t: case.values("x_t"), t: case.values("t"), z: optional(case, "z"), dv: case.values("dv") }
}

/// PyTorch's v, dx and gradients.
fn expected(case: &Fixture) -> Tensors {
    let mut tensors = case.prefixed("grad.");
    for name in ["v", "dx"] {
        tensors.insert(name.into(), case.tensor(name));
    }
    tensors
}

fn check<X: FloatX>(tolerance: f64) -> Result<()> {
    for case in CASES {
        let fixture = Fixture::open(&format!("network_{case}"));
        for isa in isas() {
            let (net, params) = network::<X>(&device(Some(isa))?, &fixture)?;
            for form in forms(&fixture) {
                let what = format!("{case}, {}, {isa:?}, {form}", X::DTYPE);
                let found = pass(&net, &params, form, Keep::All, &inputs(&fixture))?;
                assert_all_close(&what, &found, &expected(&fixture), tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn velocity_and_every_gradient_are_pytorchs_on_every_instruction_set() -> Result<()> {
    check::<f32>(F32)
}

#[test]
fn velocity_and_every_gradient_are_pytorchs_to_the_precision_of_bf16() -> Result<()> {
    check::<bf16>(2e-2)
}

#[test]
fn velocity_and_every_gradient_are_pytorchs_to_the_precision_of_f16() -> Result<()> {
    check::<f16>(5e-3)
}

#[test]
fn a_frozen_or_recomputing_network_has_the_same_bits() -> Result<()> {
    for case in CASES {
        let fixture = Fixture::open(&format!("network_{case}"));
        let (net, params) = network::<f32>(&device(None)?, &fixture)?;
        for form in forms(&fixture) {
            let all = pass(&net, &params, form, Keep::All, &inputs(&fixture))?;
            assert_eq!(pass(&net, &params, form, Keep::BlockInputs, &inputs(&fixture))?, all, "{case}");
            let frozen = pass(&net, &params, form, Keep::Inputs, &inputs(&fixture))?;
            assert_eq!(frozen.len(), 2);
            assert!(frozen.iter().all(|(name, values)| all[name] == *values), "{case}, {form}");
        }
    }
    Ok(())
}

#[test]
fn weights_as_pytorch_saved_them_open_with_a_convention_given() -> Result<()> {
    for case in ["plain", "cond", "post_norm"] {
        let fixture = Fixture::open(&format!("network_{case}"));
        let path = fixture::path(&format!("weights_{case}"));
        let (net, params) =
            Mlp::from_safetensors::<f32>(&device(None)?, &path, Some(TimeConvention::DataAtOne))?;
        let found = pass(&net, &params, Form::Direct, Keep::All, &inputs(&fixture))?;
        assert_all_close(case, &found, &expected(&fixture), F32);
    }
    Ok(())
}
