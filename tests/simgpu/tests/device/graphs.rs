//! Capture and replay, and what a capture forbids.

use crate::api::{
    Device, INVALID_VALUE, STREAM_CAPTURE_INVALIDATED, STREAM_CAPTURE_ISOLATION, STREAM_CAPTURE_UNSUPPORTED,
    SUCCESS,
};
use std::ptr::null_mut;

const GLOBAL: i32 = 0;
const THREAD_LOCAL: i32 = 1;

#[test]
fn a_captured_graph_runs_as_often_as_it_is_launched() {
    let device = Device::new(&[]);
    let (stream, other) = (device.stream(), device.stream());
    let (fork, join) = (device.event(), device.event());
    let buffers = device.upload(&[1u32, 2, 3]);
    assert_eq!(device.cuStreamBeginCapture_v2(stream, GLOBAL), SUCCESS);
    // A second stream joins the capture by an event, and comes back by another.
    assert_eq!(device.cuEventRecord(fork, stream), SUCCESS);
    assert_eq!(device.cuStreamWaitEvent(other, fork, 0), SUCCESS);
    assert_eq!(device.cuMemcpyDtoDAsync_v2(buffers + 8, buffers + 4, 4, other), SUCCESS);
    assert_eq!(device.cuEventRecord(join, other), SUCCESS);
    assert_eq!(device.cuStreamWaitEvent(stream, join, 0), SUCCESS);
    assert_eq!(device.cuMemcpyDtoDAsync_v2(buffers + 4, buffers, 4, stream), SUCCESS);
    let (mut graph, mut executable) = (null_mut(), null_mut());
    assert_eq!(device.cuStreamEndCapture(stream, &mut graph), SUCCESS);
    assert_eq!(device.download::<u32>(buffers, 3), [1, 2, 3], "capturing runs nothing");
    assert_eq!(device.cuGraphInstantiateWithFlags(&mut executable, graph, 0), SUCCESS);
    assert_eq!(device.cuGraphLaunch(executable, stream), SUCCESS);
    assert_eq!(device.cuStreamSynchronize(stream), SUCCESS);
    assert_eq!(device.download::<u32>(buffers, 3), [1, 1, 2]);
    assert_eq!(device.cuGraphLaunch(executable, stream), SUCCESS);
    assert_eq!(device.cuGraphExecDestroy(executable), SUCCESS, "what was launched still runs");
    assert_eq!(device.cuGraphDestroy(graph), SUCCESS);
    assert_eq!(device.cuStreamSynchronize(stream), SUCCESS);
    assert_eq!(device.download::<u32>(buffers, 3), [1, 1, 1]);
}

#[test]
fn a_capture_cannot_wait_for_uncaptured_work() {
    let device = Device::new(&[]);
    let (stream, other, event) = (device.stream(), device.stream(), device.event());
    assert_eq!(device.cuEventRecord(event, other), SUCCESS);
    assert_eq!(device.cuStreamBeginCapture_v2(stream, GLOBAL), SUCCESS);
    assert_eq!(device.cuStreamWaitEvent(stream, event, 0), STREAM_CAPTURE_ISOLATION);
    let mut graph = null_mut();
    assert_eq!(device.cuStreamEndCapture(stream, &mut graph), STREAM_CAPTURE_INVALIDATED);
    assert!(graph.is_null());
}

#[test]
fn a_capture_forbids_waiting_and_allocating() {
    let device = Device::new(&[]);
    let (stream, data) = (device.stream(), device.upload(&[0u32; 4]));
    let (mut graph, mut address) = (null_mut(), 0);
    for call in 0..3 {
        assert_eq!(device.cuStreamBeginCapture_v2(stream, GLOBAL), SUCCESS);
        let answer = match call {
            0 => device.cuStreamSynchronize(stream),
            1 => device.cuMemAlloc_v2(&mut address, 16),
            _ => device.cuCtxSynchronize(),
        };
        assert_eq!(answer, STREAM_CAPTURE_UNSUPPORTED, "call {call}");
        assert_eq!(device.cuMemsetD32Async(data, 1, 4, stream), STREAM_CAPTURE_INVALIDATED);
        assert_eq!(device.cuStreamEndCapture(stream, &mut graph), STREAM_CAPTURE_INVALIDATED);
    }
    assert_eq!(device.cuStreamEndCapture(stream, &mut graph), INVALID_VALUE, "there is no capture to end");
    assert_eq!(device.cuMemAlloc_v2(&mut address, 16), SUCCESS);
}

#[test]
fn a_thread_local_capture_forbids_its_own_thread_only() {
    let device = Device::new(&[]);
    let (stream, mut graph) = (device.stream(), null_mut());
    assert_eq!(device.cuStreamBeginCapture_v2(stream, THREAD_LOCAL), SUCCESS);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| device.allocate_in_this_thread(16));
        assert_eq!(other.join().unwrap(), SUCCESS);
    });
    assert_eq!(device.allocate_in_this_thread(16), STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(device.cuStreamEndCapture(stream, &mut graph), STREAM_CAPTURE_INVALIDATED);
}
