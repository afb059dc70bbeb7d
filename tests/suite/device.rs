use convmat::{Device, Error};

#[test]
fn best_device_is_one_that_was_found() {
    let best = Device::best();
    assert!(Device::probe().iter().any(|p| p.found.as_ref().is_ok_and(|(d, _)| *d == best)));
    assert_eq!("auto".parse::<Device>().unwrap(), best);
    assert_eq!("cpu".parse::<Device>().unwrap(), Device::Cpu);
    assert_eq!(Device::Cpu.to_string(), "cpu");
}

#[test]
fn absent_devices_say_why() {
    for name in ["cuda", "cuda:3", "simulator"] {
        let kind = name.split(':').next().unwrap();
        let probe = Device::probe().into_iter().find(|p| p.name == kind).expect("is probed");
        let Err(reason) = probe.found else { continue };
        match name.parse::<Device>() {
            Err(Error::DeviceUnavailable { reason: said, .. }) => assert_eq!(said, reason),
            other => panic!("{other:?}"),
        }
    }
    for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
        assert!(matches!(name.parse::<Device>(), Err(Error::Invalid { .. })), "{name}");
    }
}

/// `CONVMAT_REQUIRE=cuda,nvrtc,simulator` turns the absence of a part into a failure.
#[test]
fn required_parts_are_present() {
    let required = std::env::var("CONVMAT_REQUIRE").unwrap_or_default();
    for part in required.split(',').filter(|part| !part.is_empty()) {
        let probe = Device::probe().into_iter().find(|p| p.name == part);
        match probe.map(|p| p.found) {
            Some(Ok(_)) => {}
            Some(Err(reason)) => panic!("{part} is required, but: {reason}"),
            None => panic!("{part} is required, but this version does not know it"),
        }
    }
}
