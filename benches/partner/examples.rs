//! Gradients of single examples: their norms, and EKFAC's second moments.

use convmat::{
    Device, Explanation, GradientNormsPlan, PerExampleOptions, PlanOptions,
    RotatedSecondMomentPlan, Tensor, Update, Workspace,
};

use super::job::{Answer, Buffer, Buffers, Job, Operands, Result};

/// The norms of the examples' gradients.
pub struct Norms {
    x: Tensor<f32>,
    dy: Tensor<f32>,
    plan: GradientNormsPlan<f32, f32>,
    workspace: Workspace<'static>,
    norms: [Buffer; 1],
}

impl Norms {
    pub fn new<const D: usize>(operands: &Operands) -> Result<Self> {
        let shape = operands.shape;
        let (x, dy) = (shape.input_shape(), shape.output_shape());
        let (of, plan) = (PerExampleOptions::new(), PlanOptions::new());
        let plan = shape.conv::<D>().plan_gradient_norms(&Device::Cpu, &x, &dy, of, plan)?;
        Ok(Norms {
            x: operands.read("x", &x)?,
            dy: operands.read("dy", &dy)?,
            norms: [Buffer::new("norms", plan.result_shape().to_vec())],
            workspace: plan.make_workspace()?,
            plan,
        })
    }
}

impl Job for Norms {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        let mut norms = Tensor::zeros(&Device::Cpu, self.plan.result_shape())?;
        self.plan.run(&self.x, &self.dy, &mut norms, &mut self.plan.make_workspace()?)?;
        Ok(Box::new([("norms", norms)]))
    }

    fn into(&mut self) -> Result<()> {
        Ok(self.plan.run(&self.x, &self.dy, self.norms[0].view()?, &mut self.workspace)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.norms
    }

    fn explanation(&self) -> Option<&Explanation> {
        Some(self.plan.explanation())
    }
}

/// Squares of rotated gradients, summed over the batch.
pub struct Moment {
    x: Tensor<f32>,
    dy: Tensor<f32>,
    q_a: Tensor<f32>,
    q_g: Tensor<f32>,
    plan: RotatedSecondMomentPlan<f32, f32>,
    workspace: Workspace<'static>,
    moment: [Buffer; 1],
}

impl Moment {
    pub fn new<const D: usize>(operands: &Operands) -> Result<Self> {
        let shape = operands.shape;
        let (x, dy) = (shape.input_shape(), shape.output_shape());
        let (of, plan) = (PerExampleOptions::new(), PlanOptions::new());
        let conv = shape.conv::<D>();
        let plan = conv.plan_rotated_second_moment(&Device::Cpu, &x, &dy, [true; 2], of, plan)?;
        let result = plan.result_shape().to_vec();
        let [groups, rows, columns] = [result[0], result[1], result[2]];
        Ok(Moment {
            x: operands.read("x", &x)?,
            dy: operands.read("dy", &dy)?,
            q_a: operands.read("q_a", &[groups, columns, columns])?,
            q_g: operands.read("q_g", &[groups, rows, rows])?,
            moment: [Buffer::new("moment", result)],
            workspace: plan.make_workspace()?,
            plan,
        })
    }
}

impl Job for Moment {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        let mut moment = Tensor::zeros(&Device::Cpu, self.plan.result_shape())?;
        let (workspace, update) = (&mut self.plan.make_workspace()?, Update::replace(1.0));
        let Moment { x, dy, q_a, q_g, .. } = self;
        self.plan.run(x, dy, q_a, q_g, update, &mut moment, workspace)?;
        Ok(Box::new([("moment", moment)]))
    }

    fn into(&mut self) -> Result<()> {
        let Moment { x, dy, q_a, q_g, plan, workspace, moment } = self;
        let update = Update::replace(1.0);
        Ok(plan.run(&*x, &*dy, &*q_a, &*q_g, update, moment[0].view()?, workspace)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.moment
    }

    fn explanation(&self) -> Option<&Explanation> {
        Some(self.plan.explanation())
    }
}
