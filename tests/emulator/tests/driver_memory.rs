//! Device memory, page-locked memory, copies, fills, pools.

mod driver_support;

use std::ptr::null_mut;

use driver_support::*;

#[test]
fn sizes_of_allocations_have_limits() {
    let _driver = started(&[("memory", "16M")]);
    let mut address = 0;
    expect!(1, cuMemAlloc_v2(&mut address, 0));
    expect!(1, cuMemAllocAsync(&mut address, 0, LEGACY));
    expect!(2, cuMemAlloc_v2(&mut address, (16 << 20) + 1));
    expect!(2, cuMemAlloc_v2(&mut address, usize::MAX));
    ok!(cuMemAlloc_v2(&mut address, 16 << 20));
    expect!(2, cuMemAlloc_v2(&mut address, 1));
}

#[test]
fn addresses_are_opaque_and_aligned_and_memory_is_reported() {
    let _driver = started(&[("memory", "16M")]);
    let address: Device = made!(cuMemAlloc_v2(1 << 20));
    assert!(address >= 1 << 47, "a host could follow {address:#x}");
    assert_eq!(address % 256, 0);
    let (mut free, mut total) = (0, 0);
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    assert_eq!((free, total), (15 << 20, 16 << 20));
}

#[test]
fn only_the_start_of_a_live_allocation_can_be_freed() {
    let _driver = started(&[]);
    let address: Device = made!(cuMemAlloc_v2(64));
    expect!(1, cuMemFree_v2(address + 4));
    ok!(cuMemFree_v2(address));
    expect!(1, cuMemFree_v2(address));
    ok!(cuMemFree_v2(0));
}

#[test]
fn ranges_past_the_end_and_freed_memory_are_refused() {
    let _driver = started(&[]);
    let address: Device = made!(cuMemAlloc_v2(64));
    let host = [0u8; 128];
    ok!(cuMemcpyHtoD_v2(address, host.as_ptr().cast(), 64));
    expect!(1, cuMemcpyHtoD_v2(address, host.as_ptr().cast(), 65));
    expect!(1, cuMemcpyHtoD_v2(address + 1, host.as_ptr().cast(), 64));
    expect!(1, cuMemcpyHtoD_v2(address, null_mut(), 64));
    expect!(1, cuMemsetD8_v2(address + 60, 0, 5));
    expect!(1, cuMemsetD8_v2(host.as_ptr() as Device, 0, 5));
    ok!(cuMemcpyHtoD_v2(address, null_mut(), 0));
    ok!(cuMemFreeAsync(address, LEGACY));
    expect!(1, cuMemcpyHtoD_v2(address, host.as_ptr().cast(), 1)); // queued to be freed: gone for the program
    expect!(1, cuMemFreeAsync(address, LEGACY));
}

#[test]
fn a_wrong_host_pointer_is_an_error_and_no_crash() {
    let _driver = started(&[]);
    let address: Device = made!(cuMemAlloc_v2(64));
    expect!(1, cuMemcpyHtoD_v2(address, 0x10 as Pointer, 64));
}

#[test]
fn fills_check_alignment_and_write_the_pattern() {
    let _driver = started(&[]);
    let address: Device = made!(cuMemAlloc_v2(16));
    expect!(1, cuMemsetD16Async(address + 1, 0, 1, LEGACY));
    expect!(1, cuMemsetD32Async(address + 2, 0, 1, LEGACY));
    ok!(cuMemsetD8Async(address, 0xAB, 16, LEGACY));
    ok!(cuMemsetD16Async(address + 2, 0x1234, 1, LEGACY));
    ok!(cuMemsetD32Async(address + 4, 0xDEAD_BEEF, 2, LEGACY));
    let mut bytes = [0u8; 16];
    ok!(cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), address, 16));
    let expected =
        [0xAB, 0xAB, 0x34, 0x12, 0xEF, 0xBE, 0xAD, 0xDE, 0xEF, 0xBE, 0xAD, 0xDE, 0xAB, 0xAB, 0xAB, 0xAB];
    assert_eq!(bytes, expected);
}

#[test]
fn two_dimensional_copies_move_a_box() {
    let _driver = started(&[]);
    let source: Vec<u8> = (0..35).collect(); // 5 rows of 7
    let address: Device = made!(cuMemAlloc_v2(60)); // 6 rows of 10
    ok!(cuMemsetD8_v2(address, 0xFF, 60));
    let copy = |width, height| Copy2D {
        src_x: 2,
        src_y: 1,
        src_type: 1,
        src_host: source.as_ptr().cast(),
        src_device: 0,
        src_array: null_mut(),
        src_pitch: 7,
        dst_x: 4,
        dst_y: 2,
        dst_type: 2,
        dst_host: null_mut(),
        dst_device: address,
        dst_array: null_mut(),
        dst_pitch: 10,
        width,
        height,
    };
    ok!(cuMemcpy2D_v2(&copy(3, 4)));
    let mut found = [0u8; 60];
    ok!(cuMemcpyDtoH_v2(found.as_mut_ptr().cast(), address, 60));
    for y in 0..6 {
        for x in 0..10 {
            let inside = (2..6).contains(&y) && (4..7).contains(&x);
            let expected = if inside { ((y - 2 + 1) * 7 + x - 4 + 2) as u8 } else { 0xFF };
            assert_eq!(found[y * 10 + x], expected, "row {y} column {x}");
        }
    }
    expect!(1, cuMemcpy2D_v2(&copy(3, 5))); // past the last row
    expect!(1, cuMemcpy2D_v2(&copy(7, 2))); // past the pitch
    expect!(1, cuMemcpy2D_v2(&copy(usize::MAX, 2)));
    expect!(1, cuMemcpy2D_v2(null_mut()));
}

#[test]
fn page_locked_memory_has_flags_and_an_address_for_kernels() {
    let _driver = started(&[]);
    let host: Pointer = made!(cuMemHostAlloc(100, 4));
    let flags: u32 = made!(cuMemHostGetFlags(host));
    assert_eq!(flags, 4 | 2);
    let device: Device = made!(cuMemHostGetDevicePointer_v2(host, 0));
    assert_eq!(device, host as Device);
    let mut pointer = null_mut();
    expect!(1, cuMemHostAlloc(&mut pointer, 0, 0));
    expect!(1, cuMemHostAlloc(&mut pointer, 8, 8));
    expect!(1, cuMemFreeHost((host as usize + 1) as Pointer));
    expect!(713, cuMemHostUnregister(host));
    ok!(cuMemFreeHost(host));
    expect!(1, cuMemFreeHost(host));
}

#[test]
fn memory_is_registered_once() {
    let _driver = started(&[]);
    let mut memory = vec![0u8; 8192];
    let start: Pointer = memory.as_mut_ptr().cast();
    ok!(cuMemHostRegister_v2(start, 8192, 0));
    expect!(712, cuMemHostRegister_v2((start as usize + 4096) as Pointer, 4096, 0));
    expect!(1, cuMemFreeHost(start));
    ok!(cuMemHostUnregister(start));
    expect!(713, cuMemHostUnregister(start));
    expect!(1, cuMemHostRegister_v2(null_mut(), 1, 0));
    expect!(1, cuMemHostRegister_v2(start, 0, 0));
}

#[test]
fn a_kernel_reads_and_writes_page_locked_memory() {
    let _driver = started(&[]);
    let function = function(load(PTX), "scale");
    let host: Pointer = made!(cuMemHostAlloc(256, 0));
    // SAFETY: 256 bytes were allocated.
    let values = unsafe { std::slice::from_raw_parts_mut(host.cast::<f32>(), 64) };
    values.fill(3.0);
    assert_eq!(scale(function, LEGACY, host as Device, host as Device, 0.5, 64), 0);
    ok!(cuCtxSynchronize());
    assert!(values.iter().all(|v| *v == 1.5), "{values:?}");
    ok!(cuMemFreeHost(host));
}

#[test]
fn queued_frees_make_room() {
    let _driver = started(&[("memory", "16M")]);
    for _ in 0..5 {
        let address: Device = made!(cuMemAllocAsync(12 << 20, LEGACY));
        ok!(cuMemFreeAsync(address, LEGACY));
    }
}

#[test]
fn pools_count_and_trim() {
    let _driver = started(&[]);
    let pool: Pointer = made!(cuDeviceGetDefaultMemPool(0));
    let attribute = |number: i32| -> u64 {
        let mut value = 0u64;
        ok!(cuMemPoolGetAttribute(pool, number, (&raw mut value).cast()));
        value
    };
    let set = |number: i32, mut value: u64| {
        // SAFETY: a pointer to 8 bytes.
        unsafe { cuMemPoolSetAttribute(pool, number, (&raw mut value).cast()) }
    };
    assert_eq!(set(4, 8 << 20), 0);
    assert_eq!(attribute(4), 8 << 20);
    let address: Device = made!(cuMemAllocAsync(10 << 20, LEGACY));
    assert_eq!((attribute(7), attribute(5)), (10 << 20, 10 << 20));
    ok!(cuMemFreeAsync(address, LEGACY));
    ok!(cuCtxSynchronize());
    assert_eq!((attribute(7), attribute(8), attribute(5)), (0, 10 << 20, 8 << 20)); // the threshold stays
    ok!(cuMemPoolTrimTo(pool, 2 << 20));
    assert_eq!(attribute(5), 2 << 20);
    assert_eq!(set(8, 0), 0);
    assert_eq!(attribute(8), 0);
    assert_eq!(set(8, 5), 1);
    assert_eq!(set(7, 0), 1);
    assert_eq!(set(99, 0), 1);
}

#[test]
fn pointers_know_what_they_are() {
    let _driver = started(&[]);
    let address: Device = made!(cuMemAlloc_v2(64));
    let host: Pointer = made!(cuMemHostAlloc(64, 0));
    let kind = |pointer: Device| {
        let mut kind = 0u32;
        // SAFETY: a pointer to 4 bytes.
        let code = unsafe { cuPointerGetAttribute((&raw mut kind).cast(), 2, pointer) };
        (code, kind)
    };
    assert_eq!(kind(address + 5), (0, 2));
    assert_eq!(kind(host as Device), (0, 1));
    assert_eq!(kind(address + 64).0, 1);
    assert_eq!(kind(&raw const address as Device).0, 1);
    let mut start = 0u64;
    ok!(cuPointerGetAttribute((&raw mut start).cast(), 11, address + 5));
    assert_eq!(start, address);
}
