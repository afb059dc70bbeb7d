//! Covariances of patches.

use convmat::{
    CovarianceOptions, CovariancePlan, Device, Explanation, PlanOptions, Tensor, Update, Workspace,
};

use super::job::{Answer, Buffer, Buffers, Job, Operands, Result};

/// The factor A of a layer without a bias, by a plan that exists beforehand, as training makes one for each
/// layer.
pub struct Covariance {
    x: Tensor<f32>,
    plan: CovariancePlan<f32, f32>,
    workspace: Workspace<'static>,
    covariance: [Buffer; 1],
}

impl Covariance {
    pub fn new<const D: usize>(operands: &Operands) -> Result<Self> {
        let shape = operands.shape;
        let (x, of) = (shape.input_shape(), CovarianceOptions::new());
        let plan = shape.conv::<D>().plan_covariance(&Device::Cpu, &x, of, PlanOptions::new())?;
        Ok(Covariance {
            x: operands.read("x", &x)?,
            covariance: [Buffer::new("covariance", plan.result_shape().to_vec())],
            workspace: plan.make_workspace()?,
            plan,
        })
    }
}

impl Job for Covariance {
    fn fresh(&self) -> Result<Box<dyn Answer>> {
        let mut covariance = Tensor::zeros(&Device::Cpu, self.plan.result_shape())?;
        let workspace = &mut self.plan.make_workspace()?;
        self.plan.run(&self.x, Update::replace(1.0), &mut covariance, workspace)?;
        Ok(Box::new([("covariance", covariance)]))
    }

    fn into(&mut self) -> Result<()> {
        let target = self.covariance[0].view()?;
        Ok(self.plan.run(&self.x, Update::replace(1.0), target, &mut self.workspace)?)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.covariance
    }

    fn explanation(&self) -> Option<&Explanation> {
        Some(self.plan.explanation())
    }
}
