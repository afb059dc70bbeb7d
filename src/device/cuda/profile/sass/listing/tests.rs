use super::*;

/// Of two kernels by `nvdisasm -c` 13.5, for sm_90; without some of the instructions that fill up their ends.
const LISTING: &str = include_str!("recorded.txt");

fn widths(of: &[(u32, u32)]) -> SassWidths {
    let count = |bits| of.iter().find(|&&(width, _)| width == bits).map_or(0, |&(_, count)| count);
    SassWidths { counts: SassWidths::BITS.map(count) }
}

#[test]
fn a_listing_is_counted() {
    let found = kernels(LISTING);
    let [(moved, of_moved), (both, of_both)] = &found[..] else { panic!("{found:?}") };
    assert_eq!([moved, both], ["moved", "both"]);
    let expected = SassCounts {
        instructions: 15,
        loads: widths(&[(128, 1)]),
        stores: widths(&[(128, 1)]),
        ..SassCounts::default()
    };
    // It has no loop: the branch to itself is behind its end.
    assert_eq!(*of_moved, Sass { whole: expected, main_loop: None });
    assert_eq!(expected.each_takes(), Some((15.0 / 32.0, "byte")));
    let in_loop = SassCounts {
        instructions: 17,
        mma: 1,
        matrix_loads: 1,
        copies: widths(&[(128, 1)]),
        ..SassCounts::default()
    };
    // Its other loop has a fused product. What no thread ever executes loads nothing, but takes its turn.
    let whole = SassCounts {
        instructions: 50,
        ffma: 1,
        loads: widths(&[(32, 1)]),
        stores: widths(&[(32, 1)]),
        ..in_loop
    };
    assert_eq!(*of_both, Sass { whole, main_loop: Some(in_loop) });
    assert_eq!(in_loop.each_takes(), Some((17.0, "mma")));
    let text = in_loop.to_string();
    assert_eq!(text, "17 instructions, 17.0 a mma: 1 mma, 1 ldmatrix, copies 1 of 128 bits");
    for (_, sass) in found {
        assert_eq!(Sass::read(&sass.line()), Some(sass));
    }
    assert_eq!(Sass::read("1 2 3"), None);
}

fn counted(code: &str) -> Sass {
    let mut listing = String::from("\t.section\t.text.some,\"ax\",@progbits\n");
    for line in code.lines().map(str::trim) {
        match line.ends_with(':') {
            true => listing += line,
            false => listing += &format!("        /*0000*/                   {line} ;"),
        }
        listing += "\n";
    }
    let [(_, sass)] = kernels(&listing)[..] else { panic!("{listing}") };
    sass
}

#[test]
fn the_main_loop_is_an_inner_one_with_the_most_products() {
    let found = counted(
        ".L_outer:
         FFMA R0, R1, R2, R3
         .L_inner:
         FFMA R0, R1, R2, R3
         FFMA R0, R1, R2, R3
         @P1 BRA `(.L_inner)
         LDS.128 R4, [R5]
         @P2 BRA `(.L_inner)
         .L_small:
         LDG.E.U16.CONSTANT R4, desc[UR4][R4.64]
         STS.U16 [R4], R4
         FFMA R0, R1, R2, R3
         @P0 BRA `(.L_small)
         FFMA R0, R1, R2, R3
         @P0 BRA `(.L_outer)
         EXIT",
    );
    assert_eq!(found.whole.instructions, 13);
    assert_eq!(found.whole.loads, widths(&[(16, 1)]));
    // To the last of the branches to its start.
    let expected =
        SassCounts { instructions: 5, ffma: 2, shared_loads: 1, ..SassCounts::default() };
    assert_eq!(found.main_loop, Some(expected));
}

#[test]
fn code_out_of_the_way_is_no_loop() {
    let code = |moved: &str| {
        counted(&format!(
            "@P0 BRA `(.L_rare)
             .L_back:
             STG.E.64 desc[UR4][R2.64], R8
             EXIT
             .L_rare:
             {moved}
             BRA `(.L_back)"
        ))
    };
    assert_eq!(code("DFMA R0, R2, R4, R6").main_loop, None);
    assert_eq!(code("DFMA R0, R2, R4, R6").whole.dfma, 1);
    // A loop is one wherever it lies.
    let found = code(
        ".L_turn:
         LDG.E.128 R4, desc[UR4][R4.64]
         @P0 EXIT
         @P1 BRA `(.L_turn)",
    );
    assert_eq!(found.main_loop.map(|counts| counts.instructions), Some(3));
    assert_eq!(found.main_loop.and_then(|counts| counts.each_takes()), Some((3.0 / 16.0, "byte")));
}

/// Every kernel that NVRTC compiles here is listed by its name.
#[test]
fn what_is_compiled_is_listed() {
    use crate::device::cuda::gpu::nvrtc::Toolchain;
    use crate::device::cuda::{answers, skipped};
    let disassembler = match Disassembler::find() {
        Ok(disassembler) => disassembler,
        Err(reason) => return skipped("nvdisasm", reason),
    };
    println!("{}", disassembler.version);
    for capability in [80, 90, 120] {
        let toolchain = match Toolchain::new(capability, None) {
            Ok(toolchain) => toolchain,
            Err(reason) => return skipped("nvrtc", &reason),
        };
        let cubin = match toolchain.compile(&answers::unit()) {
            Ok(cubin) => cubin,
            Err(failure) => panic!("{}", failure.log),
        };
        if !cubin.starts_with(b"\x7fELF") {
            println!("{toolchain} has no machine code");
            continue;
        }
        let found = disassembler.kernels(&cubin).unwrap();
        assert_eq!(found.len(), 11, "{capability}: {found:?}");
        for (name, sass) in &found {
            println!("{capability} {name}: {}", sass.whole);
            assert!(sass.whole.instructions > 4 && sass.whole.stores.total() > 0, "{name}");
        }
        assert!(found.iter().any(|(_, sass)| sass.whole.mma > 0), "{capability}: {found:?}");
    }
    let error = disassembler.kernels(b"no machine code").unwrap_err();
    assert!(error.contains("nvdisasm"), "{error}");
    let absent = Disassembler::new("convmat-no-nvdisasm").unwrap_err();
    assert!(absent.contains("convmat-no-nvdisasm"), "{absent}");
}
