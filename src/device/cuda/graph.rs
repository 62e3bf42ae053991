//! Work captured as a CUDA graph: started by one call instead of one for every kernel.

use super::{Cuda, Gpu, failure};
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::cell::Cell;
use std::ptr;
use std::sync::{Arc, PoisonError};

/// Rows of text come in multiples of this: fewer would hardly be computed sooner.
const LEAST_ROW_GRANULARITY: usize = 32;

/// What [`Device::row_granularity`](crate::device::Device::row_granularity) says.
pub(super) fn row_granularity(rows: usize) -> usize {
    // Sixteen numbers between a power of two and the next: a sixteenth of the rows is filler at most.
    (rows.next_power_of_two() / 32).max(LEAST_ROW_GRANULARITY)
}

/// Captured work; it reads and writes the same memory at every launch.
struct Graph {
    executable: sys::CUgraphExec,
    gpu: Arc<Gpu>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Graph {}

/// What is known of work that is done again and again.
#[derive(Default)]
pub struct Replay(State);

#[derive(Default)]
enum State {
    /// Never done.
    #[default]
    New,
    /// Done once, kernel by kernel, which loaded the kernels: capturing must not.
    Done,
    Captured(Graph),
}

thread_local! {
    /// The GPU whose work this thread is capturing.
    static CAPTURING: Cell<*const Gpu> = const { Cell::new(ptr::null()) };
}

/// For as long as it lives, the calling thread's work is captured. A capture ends also where the work panics: no
/// other could begin on its stream.
struct Capturing<'a>(&'a Gpu);

impl<'a> Capturing<'a> {
    fn begin(gpu: &'a Arc<Gpu>) -> Result<Self> {
        // What other threads do meanwhile is not captured.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(gpu.captured.cu_stream(), mode) }
            .map_err(|error| failure(error, "begin to capture a graph"))?;
        CAPTURING.set(Arc::as_ptr(gpu));
        Ok(Self(gpu))
    }

    /// The graph of what was captured, if it can be one.
    fn end(self) -> std::result::Result<sys::CUgraph, result::DriverError> {
        let gpu = std::mem::ManuallyDrop::new(self).0;
        CAPTURING.set(ptr::null());
        // SAFETY: begun by `begin`, and ended here once.
        unsafe { result::stream::end_capture(gpu.captured.cu_stream()) }
    }
}

impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        CAPTURING.set(ptr::null());
        // SAFETY: begun by `begin`, and ended here once; a graph that came of it is owned and used no more.
        unsafe {
            if let Ok(graph) = result::stream::end_capture(self.0.captured.cu_stream()) {
                let _ = result::graph::destroy(graph);
            }
        }
    }
}

impl Gpu {
    /// Where the calling thread's work goes: to the stream, or into the graph that it is capturing. Only
    /// that thread knows of the other stream, so what other threads do meanwhile is not captured.
    pub(super) fn stream(&self) -> sys::CUstream {
        if self.is_capturing() { self.captured.cu_stream() } else { self.stream.cu_stream() }
    }

    /// Whether the calling thread is capturing a graph.
    pub(super) fn is_capturing(&self) -> bool {
        ptr::eq(CAPTURING.get(), self)
    }
}

impl Cuda {
    /// Does `work` directly the first time, captures it the second, and launches what was captured from
    /// then on.
    ///
    /// # Safety
    /// As [`Device::replay`](crate::device::Device::replay).
    pub(super) unsafe fn replayed(
        &self,
        Replay(state): &mut Replay,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        match state {
            State::New => {
                work()?;
                *state = State::Done;
                Ok(())
            }
            State::Done => {
                let graph = self.capture(work)?;
                // SAFETY: as the caller promises.
                unsafe { graph.launch() }?;
                *state = State::Captured(graph);
                Ok(())
            }
            // SAFETY: as the caller promises.
            State::Captured(graph) => unsafe { graph.launch() },
        }
    }

    /// The work as a graph; nothing of it is done yet.
    fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.bind()?;
        let _one_at_a_time = self.0.capture.lock().unwrap_or_else(PoisonError::into_inner);
        let capturing = Capturing::begin(&self.0)?;
        let done = work();
        // It is ended also if the work failed, which tells more.
        let graph = capturing.end();
        done?;
        let graph = graph.map_err(|error| failure(error, "capture a graph"))?;
        // SAFETY: the graph was just made and is used no more once it is instantiated.
        let executable = unsafe {
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            executable
        };
        let executable = executable.map_err(|error| failure(error, "instantiate a graph"))?;
        Ok(Graph { executable, gpu: self.0.clone() })
    }
}

impl Graph {
    /// # Safety
    /// The memory that it reads and writes is there.
    unsafe fn launch(&self) -> Result<()> {
        self.gpu.context.bind_to_thread().map_err(|error| failure(error, "use the GPU"))?;
        // SAFETY: as the caller promises; stream and graph are alive.
        unsafe { result::graph::launch(self.executable, self.gpu.stream.cu_stream()) }
            .map_err(|error| failure(error, "launch a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.context.bind_to_thread().is_ok() {
            // SAFETY: owned; the driver keeps what is still running.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}
