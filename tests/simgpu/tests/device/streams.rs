//! Streams run late and mixed: whoever forgets an event or a wait reads old data.

use crate::api::{Device, INVALID_HANDLE, NOT_READY, SUCCESS};
use std::ptr::null_mut;

/// How many of 40 reads in a second stream see what the first was told to write.
fn fresh_reads(device: &Device, with_event: bool) -> usize {
    let (one, two, event) = (device.stream(), device.stream(), device.event());
    let (source, copy) = (device.upload(&[7u32; 4]), device.upload(&[0u32; 4]));
    let mut fresh = 0;
    for _ in 0..40 {
        let mut read = [0u32; 4];
        assert_eq!(device.cuMemsetD32Async(copy, 0, 4, one), SUCCESS);
        assert_eq!(device.cuStreamSynchronize(one), SUCCESS);
        assert_eq!(device.cuMemcpyDtoDAsync_v2(copy, source, 16, one), SUCCESS);
        if with_event {
            assert_eq!(device.cuEventRecord(event, one), SUCCESS);
            assert_eq!(device.cuStreamWaitEvent(two, event, 0), SUCCESS);
        }
        assert_eq!(device.cuMemcpyDtoHAsync_v2(read.as_mut_ptr().cast(), copy, 16, two), SUCCESS);
        fresh += usize::from(read == [7; 4]);
        assert_eq!(device.cuCtxSynchronize(), SUCCESS);
    }
    fresh
}

#[test]
fn an_event_orders_two_streams_and_without_it_old_data_is_read() {
    let device = Device::new(&[]);
    assert_eq!(fresh_reads(&device, true), 40);
    let fresh = fresh_reads(&device, false);
    assert!((1..40).contains(&fresh), "{fresh} of 40 reads saw the data: the order is not random");
}

#[test]
fn eager_streams_hide_the_missing_event() {
    assert_eq!(fresh_reads(&Device::new(&[("SIMGPU_ASYNC", "eager")]), false), 40);
}

#[test]
fn nothing_runs_before_somebody_waits() {
    let device = Device::new(&[]);
    let (stream, event, data) = (device.stream(), device.event(), device.upload(&[0u32; 4]));
    assert_eq!(device.cuMemsetD32Async(data, 5, 4, stream), SUCCESS);
    assert_eq!(device.cuEventRecord(event, stream), SUCCESS);
    assert_eq!(device.cuEventQuery(event), NOT_READY);
    assert_eq!(device.cuStreamSynchronize(stream), SUCCESS);
    assert_eq!(device.cuEventQuery(event), SUCCESS);
    assert_eq!(device.download::<u32>(data, 4), [5; 4]);
}

#[test]
fn asking_an_event_again_and_again_gets_there() {
    let device = Device::new(&[]);
    let (stream, event, data) = (device.stream(), device.event(), device.upload(&[0u32; 4]));
    assert_eq!(device.cuMemsetD32Async(data, 5, 4, stream), SUCCESS);
    assert_eq!(device.cuEventRecord(event, stream), SUCCESS);
    let asked = (0..100).take_while(|_| device.cuEventQuery(event) == NOT_READY).count();
    assert!((1..100).contains(&asked), "{asked}");
}

#[test]
fn the_null_stream_waits_for_blocking_streams() {
    let device = Device::new(&[]);
    let mut blocking = null_mut();
    assert_eq!(device.cuStreamCreate(&mut blocking, 0), SUCCESS);
    let data = device.upload(&[0u32; 4]);
    for value in 1..20 {
        assert_eq!(device.cuMemsetD32Async(data, value, 4, blocking), SUCCESS);
        assert_eq!(device.download::<u32>(data, 4), [value; 4]);
    }
}

#[test]
fn a_destroyed_stream_does_its_work_and_takes_no_more() {
    let device = Device::new(&[]);
    let (stream, data) = (device.stream(), device.upload(&[0u32; 4]));
    assert_eq!(device.cuMemsetD32Async(data, 3, 4, stream), SUCCESS);
    assert_eq!(device.cuStreamDestroy_v2(stream), SUCCESS);
    assert_eq!(device.cuMemsetD32Async(data, 4, 4, stream), INVALID_HANDLE);
    assert_eq!(device.cuCtxSynchronize(), SUCCESS);
    assert_eq!(device.download::<u32>(data, 4), [3; 4]);
}
