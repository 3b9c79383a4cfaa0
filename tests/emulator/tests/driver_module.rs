//! Images, functions, attributes, limits of launches, occupancy.

mod driver_support;

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::null_mut;

use driver_support::*;

fn refusal(text: &[u8]) -> u32 {
    let mut image = text.to_vec();
    image.push(0);
    let mut module = null_mut();
    // SAFETY: an image that ends with a zero byte.
    unsafe { cuModuleLoadData(&mut module, image.as_ptr().cast()) }
}

/// Loads with logs and returns the code, the log of errors and the size that the driver gives for it.
fn load_with_log(text: &str, room: usize) -> (u32, String, usize) {
    let text = CString::new(text).unwrap();
    let (mut log, mut module) = (vec![b'#' as c_char; room], null_mut());
    let mut options: [c_int; 2] = [5, 6];
    let mut values: [Pointer; 2] = [log.as_mut_ptr().cast(), room as Pointer];
    let (options, places) = (options.as_mut_ptr(), values.as_mut_ptr());
    // SAFETY: two options with a buffer and its size.
    let code = unsafe { cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, options, places) };
    // SAFETY: the driver terminates it.
    let text = unsafe { CStr::from_ptr(log.as_ptr()) }.to_str().unwrap().to_owned();
    (code, text, values[1] as usize)
}

#[test]
fn binaries_for_hardware_are_refused_as_hardware_refuses_others() {
    let _driver = started(&[]);
    let mut elf = b"\x7FELF".to_vec();
    elf.resize(64, 1);
    assert_eq!(refusal(&elf), 209);
    let mut fat = 0xBA55_ED50u32.to_le_bytes().to_vec();
    fat.resize(64, 1);
    assert_eq!(refusal(&fat), 209);
    assert_eq!(refusal(b"!<arch>\n"), 200);
    assert_eq!(refusal(b""), 200);
    assert_eq!(refusal(&[0xFE, 0xED]), 200);
}

#[test]
fn malformed_text_is_218_and_the_log_names_line_and_reason() {
    let _driver = started(&[]);
    let text = PTX.replace("mul.f32 %f3, %f2, %f1;", "mul.f32 %f3, %f2;");
    let line = 1 + text.lines().position(|line| line.contains("mul.f32")).unwrap();
    let (code, log, size) = load_with_log(&text, 400);
    assert_eq!(code, 218, "{log}");
    assert!(log.contains(&format!("line {line}")), "{log}");
    assert_eq!(size, log.len());
    let (code, cut, _) = load_with_log(&text, 10);
    assert_eq!((code, cut.as_str()), (218, &log[..9]));
    assert_eq!(refusal(b".version 8.0\n.target sm_80\n\xFF\n"), 218);
    assert_eq!(refusal(b"hello"), 218);
}

#[test]
fn an_unknown_instruction_is_refused_by_name() {
    let _driver = started(&[]);
    let (code, log, _) =
        load_with_log(&PTX.replace("mul.f32 %f3, %f2, %f1;", "frobnicate.f32 %f3, %f2, %f1;"), 400);
    assert_eq!(code, 218);
    assert!(log.contains("frobnicate"), "{log}");
}

#[test]
fn unknown_options_of_the_compiler_are_refused() {
    let _driver = started(&[]);
    let text = CString::new(PTX).unwrap();
    let (mut module, mut option, mut value) = (null_mut(), 35, null_mut());
    expect!(1, cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 1, &mut option, &mut value));
    expect!(1, cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 1, null_mut(), &mut value));
    let mut option = 7; // optimisation level: accepted
    ok!(cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 1, &mut option, &mut value));
}

#[test]
fn newer_ptx_is_222_by_the_version_of_the_driver() {
    for (driver, version, code) in [
        ("13000", "9.0", 0),
        ("13000", "9.1", 222),
        ("12060", "8.5", 0),
        ("12060", "8.7", 222),
        ("13050", "9.5", 0),
    ] {
        let _driver = started(&[("driver", driver)]);
        let text = PTX.replace(".version 8.0", &format!(".version {version}"));
        let (found, log, _) = load_with_log(&text, 200);
        assert_eq!(found, code, "driver {driver} PTX {version}: {log}");
    }
}

#[test]
fn a_newer_target_is_218_and_an_older_one_runs() {
    for (device, target, code) in [
        ("sm_80", "sm_80", 0),
        ("sm_80", "sm_86", 218),
        ("sm_80", "sm_90a", 218),
        ("sm_86", "sm_80", 0),
        ("sm_90", "sm_90a", 0),
        ("sm_100", "sm_90a", 218),
        ("sm_100", "sm_90", 0),
    ] {
        let _driver = started(&[("device", device)]);
        let (found, log, _) = load_with_log(&PTX.replace("sm_80", target), 200);
        assert_eq!(found, code, "{target} on {device}: {log}");
    }
}

#[test]
fn functions_and_variables_are_found_by_name() {
    let _driver = started(&[]);
    let module = load(PTX);
    let mut handle = null_mut();
    expect!(500, cuModuleGetFunction(&mut handle, module, c"nothing".as_ptr()));
    expect!(1, cuModuleGetFunction(&mut handle, module, null_mut()));
    assert_eq!(function(module, "scale"), function(module, "scale"));
    let (mut address, mut bytes) = (0, 0);
    ok!(cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"table".as_ptr()));
    assert_eq!(bytes, 12);
    let mut values = [0u32; 3];
    ok!(cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, 12));
    assert_eq!(values, [7, 8, 9]);
    expect!(1, cuMemFree_v2(address));
    expect!(500, cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"scale".as_ptr()));
    let kernel = function(module, "scale");
    ok!(cuModuleUnload(module));
    assert_eq!(launch(kernel, [1; 3], [1; 3], 0, LEGACY, &mut []), 400);
    expect!(1, cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, 12));
    expect!(400, cuModuleUnload(module));
}

#[test]
fn a_launch_computes() {
    let _driver = started(&[]);
    let kernel = function(load(PTX), "scale");
    let x: Vec<f32> = (0..1000).map(|i| i as f32 - 300.0).collect();
    let (device_x, y) = (upload(&x), made!(cuMemAlloc_v2(4000)));
    assert_eq!(scale(kernel, LEGACY, y, device_x, 0.25, 1000), 0);
    let found = download(y, 1000);
    for (i, (found, x)) in found.iter().zip(&x).enumerate() {
        assert_eq!(*found, x * 0.25, "{i}");
    }
}

#[test]
fn parameters_are_copied_at_the_call() {
    let _driver = started(&[]);
    let kernel = function(load(PTX), "scale");
    let (mut y, mut x) = (upload(&[0.0]), upload(&[8.0]));
    let (mut a, mut n) = (0.5f32, 1u32);
    let mut params: [Pointer; 4] =
        [(&raw mut y).cast(), (&raw mut x).cast(), (&raw mut a).cast(), (&raw mut n).cast()];
    assert_eq!(launch(kernel, [1; 3], [32, 1, 1], 0, LEGACY, &mut params), 0);
    let place = &raw mut a;
    // SAFETY: a live variable; volatile, so that the change is made before the kernel runs.
    unsafe { place.write_volatile(100.0) };
    assert_eq!(download(y, 1), [4.0]);
}

#[test]
fn parameters_can_come_as_one_buffer() {
    let _driver = started(&[]);
    let kernel = function(load(PTX), "scale");
    let (y, x) = (upload(&[0.0]), upload(&[8.0]));
    let mut buffer = [y.to_le_bytes(), x.to_le_bytes(), [0; 8]].concat();
    buffer[16..20].copy_from_slice(&0.5f32.to_le_bytes());
    buffer[20..24].copy_from_slice(&1u32.to_le_bytes());
    let call = |mut size: usize| {
        let mut extra: [Pointer; 5] = [
            1 as Pointer,
            buffer.as_ptr().cast_mut().cast(),
            2 as Pointer,
            (&raw mut size).cast(),
            null_mut(),
        ];
        // SAFETY: the marks, the buffer and its size, as cuda.h has it.
        unsafe { cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, LEGACY, null_mut(), extra.as_mut_ptr()) }
    };
    assert_eq!(call(24), 0);
    assert_eq!(download(y, 1), [4.0]);
    assert_eq!(call(20), 1);
    let mut nothing: [Pointer; 4] = [null_mut(); 4];
    assert_eq!(launch(kernel, [1; 3], [32, 1, 1], 0, LEGACY, &mut nothing), 1);
    // SAFETY: no parameters at all, which must be refused.
    let code = unsafe { cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, LEGACY, null_mut(), null_mut()) };
    assert_eq!(code, 1);
}

#[test]
fn sizes_past_the_limits_are_refused() {
    let _driver = started(&[]);
    let kernel = function(load(PTX), "big");
    let run = |grid, block| launch(kernel, grid, block, 0, LEGACY, &mut []);
    assert_eq!(run([1, 1, 1], [1024, 1, 1]), 0);
    assert_eq!(run([1, 1, 1], [16, 1, 64]), 0);
    for (grid, block) in [
        ([0, 1, 1], [1, 1, 1]),
        ([1, 0, 1], [1, 1, 1]),
        ([1, 1, 1], [1, 1, 0]),
        ([1, 65536, 1], [1, 1, 1]),
        ([1, 1, 65536], [1, 1, 1]),
        ([1 << 31, 1, 1], [1, 1, 1]),
        ([1, 1, 1], [1025, 1, 1]),
        ([1, 1, 1], [1, 1, 65]),
        ([1, 1, 1], [33, 32, 1]),
        ([u32::MAX; 3], [u32::MAX; 3]),
    ] {
        assert_eq!(run(grid, block), 1, "{grid:?} {block:?}");
    }
    ok!(cuCtxSynchronize());
}

#[test]
fn declared_block_sizes_hold() {
    let _driver = started(&[]);
    let module = load(PTX);
    let (bounded, exact) = (function(module, "bounded"), function(module, "exact"));
    let run = |kernel, block| launch(kernel, [1; 3], block, 0, LEGACY, &mut []);
    assert_eq!(run(bounded, [64, 1, 1]), 0);
    assert_eq!(run(bounded, [65, 1, 1]), 1);
    assert_eq!(run(exact, [32, 2, 1]), 0);
    assert_eq!(run(exact, [64, 1, 1]), 1);
    let most: c_int = made!(cuFuncGetAttribute(0, bounded));
    assert_eq!(most, 64);
}

#[test]
fn shared_memory_above_48_kib_needs_the_attribute() {
    let _driver = started(&[]);
    let module = load(PTX);
    let (plain, big) = (function(module, "bounded"), function(module, "big"));
    let run = |kernel, shared| launch(kernel, [1; 3], [1; 3], shared, LEGACY, &mut []);
    assert_eq!(run(plain, 49_152), 0);
    assert_eq!(run(plain, 49_153), 1);
    ok!(cuFuncSetAttribute(plain, 8, 100_000));
    assert_eq!(run(plain, 100_000), 0);
    assert_eq!(run(plain, 100_001), 1);
    expect!(1, cuFuncSetAttribute(plain, 8, 166_913)); // the most of sm_80 is 166,912
    ok!(cuFuncSetAttribute(plain, 8, 166_912));
    assert_eq!(run(big, 9_152), 0); // 40,000 static
    assert_eq!(run(big, 9_153), 1);
    expect!(1, cuFuncSetAttribute(big, 8, 166_912));
    ok!(cuFuncSetAttribute(big, 8, 126_912));
    assert_eq!(run(big, 126_912), 0);
    expect!(1, cuFuncSetAttribute(big, 8, -1));
    expect!(1, cuFuncSetAttribute(big, 1, 0));
    ok!(cuCtxSynchronize());
}

#[test]
fn attributes_of_a_function_are_those_of_its_ptx() {
    let _driver = started(&[("device", "sm_86")]);
    let big = function(load(PTX), "big");
    let attribute = |number: c_int| -> c_int { made!(cuFuncGetAttribute(number, big)) };
    assert_eq!((attribute(1), attribute(5), attribute(6), attribute(8)), (40_000, 80, 86, 9_152));
    let mut value = 0;
    expect!(1, cuFuncGetAttribute(&mut value, 99, big));
}

/// A CUBIN with nothing but the register count of `scale`: ELF header, names, `.nv.info`, `.symtab`, `.strtab`.
fn cubin(registers: u32) -> Vec<u8> {
    let names = b"\0.shstrtab\0.nv.info\0.symtab\0.strtab\0".to_vec();
    let info = [&[4u8, 0x2F, 8, 0][..], &1u32.to_le_bytes(), &registers.to_le_bytes()].concat();
    let mut symbols = vec![0u8; 48];
    symbols[24] = 1;
    let strings = b"\0scale\0".to_vec();
    let mut file = vec![0u8; 64];
    file[..4].copy_from_slice(b"\x7FELF");
    let mut headers = vec![0u8; 64];
    for (name, kind, bytes) in [(1u32, 3u32, names), (11, 1, info), (20, 2, symbols), (28, 3, strings)] {
        let (at, size) = (file.len() as u64, bytes.len() as u64);
        file.extend(bytes);
        let mut header = [0u8; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[24..32].copy_from_slice(&at.to_le_bytes());
        header[32..40].copy_from_slice(&size.to_le_bytes());
        headers.extend(header);
    }
    let start = file.len() as u64;
    file[40..48].copy_from_slice(&start.to_le_bytes());
    file[58] = 64;
    file[60] = 5;
    file[62] = 1;
    file.extend(headers);
    file
}

#[test]
fn registers_of_a_refused_cubin_count() {
    let _driver = started(&[]);
    assert_eq!(refusal(&cubin(124)), 209);
    let kernel = function(load(PTX), "scale");
    let registers: c_int = made!(cuFuncGetAttribute(4, kernel));
    assert_eq!(registers, 124);
    let threads: c_int = made!(cuFuncGetAttribute(0, kernel));
    assert_eq!(threads, 512); // 65,536 / (124 rounded up to 128)
    let (y, x) = (upload(&[0.0]), upload(&[0.0]));
    let (mut y, mut x, mut a, mut n) = (y, x, 1.0f32, 1u32);
    let mut params: [Pointer; 4] =
        [(&raw mut y).cast(), (&raw mut x).cast(), (&raw mut a).cast(), (&raw mut n).cast()];
    assert_eq!(launch(kernel, [1; 3], [512, 1, 1], 0, LEGACY, &mut params), 0);
    assert_eq!(launch(kernel, [1; 3], [544, 1, 1], 0, LEGACY, &mut params), 701);
    let blocks: c_int = made!(cuOccupancyMaxActiveBlocksPerMultiprocessor(kernel, 256, 0));
    assert_eq!(blocks, 2);
    ok!(cuCtxSynchronize());
}

#[test]
fn a_cubin_that_is_cut_off_is_refused_too() {
    let _driver = started(&[]);
    let whole = cubin(40);
    for length in (4..whole.len()).step_by(7) {
        let mut part = whole.clone();
        part[length..].fill(0xFF);
        assert_eq!(refusal(&part), 209, "{length}");
    }
}

#[test]
fn a_cooperative_launch_must_fit() {
    let _driver = started(&[]);
    let kernel = function(load(PTX), "bounded");
    let run = |blocks| {
        // SAFETY: a kernel without parameters.
        unsafe { cuLaunchCooperativeKernel(kernel, blocks, 1, 1, 64, 1, 1, 0, LEGACY, null_mut()) }
    };
    let each: c_int = made!(cuOccupancyMaxActiveBlocksPerMultiprocessor(kernel, 64, 0));
    let most = each as u32 * 108;
    assert_eq!(run(most), 0);
    assert_eq!(run(most + 1), 720);
    ok!(cuCtxSynchronize());
}

#[test]
fn clusters_need_hopper_and_a_grid_that_they_divide() {
    for (device, grid, cluster, code) in [
        ("sm_80", 4, 2, 1),
        ("sm_80", 4, 1, 0),
        ("sm_90", 4, 2, 0),
        ("sm_90", 5, 2, 1),
        ("sm_90", 16, 16, 912),
        ("sm_90", 4, 0, 1),
    ] {
        let _driver = started(&[("device", device)]);
        let kernel = function(load(PTX), "bounded");
        let mut attribute = [0u32; 18];
        attribute[0] = 4;
        attribute[2..5].copy_from_slice(&[cluster, 1, 1]);
        let config = LaunchConfig {
            grid: [grid, 1, 1],
            block: [32, 1, 1],
            shared: 0,
            stream: LEGACY,
            attributes: &mut attribute,
            count: 1,
        };
        // SAFETY: a configuration with one attribute, for a kernel without parameters.
        let found = unsafe { cuLaunchKernelEx(&config, kernel, null_mut(), null_mut()) };
        assert_eq!(found, code, "{device} grid {grid} cluster {cluster}");
        ok!(cuCtxSynchronize());
    }
}

#[test]
fn hostile_text_is_refused_quickly() {
    let _driver = started(&[]);
    for text in [
        "/*".repeat(100_000),
        "{".repeat(100_000),
        format!(".version 8.0\n.target sm_80\n.address_size 64\n{}", ".global .b8 x[999999999999];\n"),
        ".version 99999999999999999999.0".to_owned(),
        ".target ".repeat(1000),
    ] {
        assert_ne!(refusal(text.as_bytes()), 0, "{}", &text[..20]);
    }
}

/// Random numbers below a limit.
fn draws() -> impl FnMut(usize) -> usize {
    let mut random = 1u64;
    move |limit| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit
    }
}

/// Changes an image in one place: bytes, or a number of eight bytes.
fn change(image: &mut Vec<u8>, whole: &[u8], draw: &mut impl FnMut(usize) -> usize) {
    let (at, from) = (draw(image.len()), draw(whole.len()));
    match draw(6) {
        0 => image[at] = draw(256) as u8,
        1 if image.len() > 1 => drop(image.remove(at)),
        2 => image.insert(at, b"{}();,.%@[]-0"[draw(13)]),
        3 => image[at] = whole[from],
        4 => image.truncate(at + 1),
        _ => {
            let size = whole.len() as u64;
            let number =
                [0, 1, 64, size - 1, size, size + 1, 1 << 28, 1 << 32, 1 << 47, 1 << 63, u64::MAX][draw(11)];
            let (at, bytes) = (at / 8 * 8, [2, 4, 8][draw(3)]);
            image.iter_mut().skip(at).zip(number.to_le_bytes()).take(bytes).for_each(|(to, byte)| *to = byte);
        }
    }
}

#[test]
fn mutated_images_are_loaded_or_refused_and_nothing_else() {
    let _driver = started(&[("report", "/dev/null")]);
    let mut draw = draws();
    let fatbin = [&[0x50, 0xED, 0x55, 0xBA, 1, 0, 16, 0][..], &cubin(32)].concat();
    let binaries = [cubin(32), cubin(32), fatbin, b"!<arch>\nkernels.o/ 0 0 0 644 8`\n".to_vec()];
    let mut loaded = 0;
    for round in 0..200_000 {
        // One in fifty is text, which has a test of its own.
        let whole = if round % 50 == 0 { PTX.as_bytes() } else { &binaries[round % 4] };
        let mut image = whole.to_vec();
        for _ in 0..1 + draw(3) {
            change(&mut image, whole, &mut draw);
        }
        if round % 10 == 1 {
            image = (0..draw(200)).map(|_| draw(256) as u8).collect();
        }
        match refusal(&image) {
            0 => loaded += 1,
            code => assert!(
                [2, 200, 209, 218, 222].contains(&code),
                "{code}: {}",
                String::from_utf8_lossy(&image)
            ),
        }
    }
    assert!(loaded > 20, "only {loaded} of the texts are still right");
}
