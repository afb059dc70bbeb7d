use convmat::*;
use half::bf16;
fn call<T: Element>(
    device: &Device,
    layout: Layout,
    groups: usize,
    c: usize,
    k: usize,
    s: usize,
) -> Result<()> {
    let conv =
        Conv::new([k, k]).stride([s, s]).padding([k / 2, k / 2]).groups(groups).layout(layout);
    let x = Tensor::<T>::zeros(device, &layout.activation_shape(64, c, &[56, 56]))?;
    let w = Tensor::<T>::zeros(device, &layout.weight_shape(c, c / groups, &[k, k]))?;
    let y = conv.forward(&x, &w, None)?;
    conv.backward_input(&y, &w, [56, 56])?;
    conv.backward_weight(&x, &y)?;
    if groups == 1 {
        for a in Algorithm::ALL {
            let (mut y, mut dx, mut dw) = (y.clone(), x.clone(), w.clone());
            conv.forward_into(&x, &w, None, &mut y, a)?;
            conv.backward_input_into(&y, &w, &mut dx, a)?;
            conv.backward_weight_into(&x, &y, &mut dw, a)?;
        }
    }
    Ok(())
}
#[test]
fn tmp_registers() {
    for capability in [90, 75] {
        let device = Device::compile_only(
            capability,
            KernelOptions { specialise: true, wide: false, reuse: false },
        )
        .unwrap();
        device
            .prepare(|d| {
                for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
                    for (groups, c, k, s) in [
                        (64, 64, 3, 1),
                        (64, 64, 3, 2),
                        (64, 64, 7, 1),
                        (64, 64, 5, 2),
                        (32, 128, 3, 1),
                        (32, 256, 3, 2),
                        (16, 256, 3, 1),
                        (8, 64, 5, 1),
                    ] {
                        call::<f32>(d, layout, groups, c, k, s)?;
                        call::<bf16>(d, layout, groups, c, k, s)?;
                        call::<f64>(d, layout, groups, c, k, s)?;
                    }
                    call::<bf16>(d, layout, 1, 64, 3, 1)?;
                    call::<f32>(d, layout, 1, 64, 3, 1)?;
                }
                Ok(())
            })
            .unwrap();
        let Device::Cuda(device) = device else { unreachable!() };
        for k in device.kernels() {
            if k.name.contains("direct")
                || k.name.contains("naive")
                || k.name.contains("SOURCE")
                || k.local_bytes > 0
            {
                println!(
                    "cap{capability} {:4} regs {:6} shared {:4} local {}",
                    k.registers, k.shared_bytes, k.local_bytes, k.name
                );
            }
        }
    }
}
