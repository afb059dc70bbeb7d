//! Forward and backward through the network, by plans that are made once for a batch size.

use convmat::{
    BackwardBiasPlan, BackwardInputPlan, BackwardWeightPlan, Device, ForwardPlan, PlanOptions,
    Result, Tensor, Workspace,
};

use crate::network::{Gradient, Network, host};

/// A plan and the memory that its runs work in.
struct Ready<P> {
    plan: P,
    workspace: Workspace<'static>,
}

/// Everything that is computed of one layer.
struct LayerPlans {
    forward: Ready<ForwardPlan<f32>>,
    backward_input: Ready<BackwardInputPlan<f32>>,
    backward_weight: Ready<BackwardWeightPlan<f32>>,
    backward_bias: Ready<BackwardBiasPlan<f32>>,
}

/// The plans of all layers for batches of one size.
pub struct Passes {
    device: Device,
    layers: Vec<LayerPlans>,
}

/// What going forward leaves for going back: every layer's input, and its output before the activation.
pub struct Tape {
    pub inputs: Vec<Tensor<f32>>,
    outputs: Vec<Tensor<f32>>,
}

impl Tape {
    /// The last layer's output, `[N, 10, 1, 1]`.
    pub fn logits(&self) -> &Tensor<f32> {
        &self.outputs[self.outputs.len() - 1]
    }
}

macro_rules! ready {
    ($plan:expr) => {{
        let plan = $plan?;
        let workspace = plan.make_workspace()?;
        Ready { plan, workspace }
    }};
}

impl Passes {
    pub fn new(device: &Device, network: &Network, batch: usize) -> Result<Self> {
        let options = PlanOptions::new();
        let mut layers = Vec::new();
        for layer in &network.layers {
            let (conv, w) = (&layer.conv, layer.weight.shape());
            let x = [batch, layer.channels, layer.size[0], layer.size[1]];
            let bias = layer.bias.is_some();
            let forward = ready!(conv.plan_forward(device, &x, w, bias, options));
            let y = forward.plan.result_shape().to_vec();
            layers.push(LayerPlans {
                forward,
                backward_input: ready!(
                    conv.plan_backward_input(device, &y, w, layer.size, options)
                ),
                backward_weight: ready!(conv.plan_backward_weight(device, &x, &y, options)),
                backward_bias: ready!(conv.plan_backward_bias(device, &y, options)),
            });
        }
        Ok(Passes { device: device.clone(), layers })
    }

    pub fn forward(&mut self, network: &Network, images: Tensor<f32>) -> Result<Tape> {
        let mut tape = Tape { inputs: vec![images], outputs: Vec::new() };
        for (at, (plans, layer)) in self.layers.iter_mut().zip(&network.layers).enumerate() {
            let Ready { plan, workspace } = &mut plans.forward;
            let mut y = Tensor::zeros(&self.device, plan.result_shape())?;
            plan.run(&tape.inputs[at], &layer.weight, &layer.bias, &mut y, workspace)?;
            if at + 1 < network.layers.len() {
                tape.inputs.push(layer.activation.forward(&y)?);
            }
            tape.outputs.push(y);
        }
        Ok(tape)
    }

    /// The gradients by every layer's output, from that by the logits.
    pub fn backward(
        &mut self,
        network: &Network,
        tape: &Tape,
        by_logits: Tensor<f32>,
    ) -> Result<Vec<Tensor<f32>>> {
        let mut gradients = vec![by_logits];
        for at in (1..network.layers.len()).rev() {
            let Ready { plan, workspace } = &mut self.layers[at].backward_input;
            let mut dx = Tensor::zeros(&self.device, plan.result_shape())?;
            let dy = &gradients[gradients.len() - 1];
            plan.run(dy, &network.layers[at].weight, &mut dx, workspace)?;
            let before = network.layers[at - 1].activation;
            gradients.push(before.backward(&tape.outputs[at - 1], &dx)?);
        }
        gradients.reverse();
        Ok(gradients)
    }

    /// The means over the batch of the gradients by the parameters, from those by the outputs.
    pub fn gradients(
        &mut self,
        network: &Network,
        tape: &Tape,
        by_outputs: &[Tensor<f32>],
    ) -> Result<Vec<Gradient>> {
        let mut gradients = Vec::new();
        for (at, plans) in self.layers.iter_mut().enumerate() {
            let (x, dy) = (&tape.inputs[at], &by_outputs[at]);
            let Ready { plan, workspace } = &mut plans.backward_weight;
            let mut weight = Tensor::zeros(&self.device, plan.result_shape())?;
            plan.run(x, dy, &mut weight, workspace)?;
            let mut bias = None;
            if network.layers[at].bias.is_some() {
                let Ready { plan, workspace } = &mut plans.backward_bias;
                let mut sum = Tensor::zeros(&self.device, plan.result_shape())?;
                plan.run(dy, &mut sum, workspace)?;
                bias = Some(mean(&sum, x.shape()[0])?);
            }
            gradients.push(Gradient { weight: mean(&weight, x.shape()[0])?, bias });
        }
        Ok(gradients)
    }
}

fn mean(sum: &Tensor<f32>, count: usize) -> Result<Tensor<f32>> {
    let values = host(sum)?.iter().map(|value| value / count as f32).collect();
    Tensor::from_vec(&sum.device(), sum.shape(), values)
}
