//! The device: how it is got, how errors come out of it, how results are read back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use wgpu::{Buffer, BufferUsages, ComputePipeline};

use crate::Error;

/// A device with its queue, native or in the browser.
///
/// Errors that WebGPU reports without a caller (a shader that does not compile, memory that runs out) are kept and
/// come out of the next [`Gpu::check`] or [`Gpu::read`]; in the browser they would only be logged.
pub struct Gpu {
    /// Makes surfaces of canvases.
    instance: wgpu::Instance,
    device: wgpu::Device,
    queue: wgpu::Queue,
    adapter: String,
    is_software: bool,
    trouble: Arc<Mutex<Option<Error>>>,
    /// By shader text and entry point: compiling takes longer than a small encode.
    pipelines: Mutex<HashMap<(String, String), ComputePipeline>>,
}

impl Gpu {
    /// The fastest adapter with the limits that every WebGPU device has.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] or [`Error::NoDevice`].
    pub async fn new() -> Result<Self, Error> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = instance.request_adapter(&options).await.map_err(|error| Error::NoAdapter(error.to_string()))?;
        let info = adapter.get_info();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("lmm-scope"),
            required_limits: wgpu::Limits::defaults(),
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|error| Error::NoDevice { adapter: info.name.clone(), reason: error.to_string() })?;
        let is_software = info.device_type == wgpu::DeviceType::Cpu;
        let (trouble, pipelines) = (Arc::default(), Mutex::default());
        let gpu = Self { instance, device, queue, adapter: info.name, is_software, trouble, pipelines };
        gpu.watch();
        Ok(gpu)
    }

    /// The adapter's name; empty in browsers that keep it to themselves.
    #[must_use]
    pub fn adapter(&self) -> &str {
        &self.adapter
    }

    /// Whether this machine's CPU computes in the GPU's place. Browsers do not say: `false` there.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.is_software
    }

    /// The device itself, for what is not done here.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "only a browser has canvases"))]
    pub(crate) fn instance(&self) -> &wgpu::Instance {
        &self.instance
    }

    /// Bytes one binding of a storage buffer may have.
    #[must_use]
    pub fn max_binding_bytes(&self) -> u64 {
        self.device.limits().max_storage_buffer_binding_size
    }

    /// The first trouble since the device was created, if any.
    ///
    /// # Errors
    /// [`Error::Lost`] or [`Error::Gpu`].
    pub fn check(&self) -> Result<(), Error> {
        match &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Waits until all submitted work is done and its errors have arrived.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub async fn settle(&self) -> Result<(), Error> {
        let probe = self.storage("settle", 4);
        self.read(&probe, 4).await.map(|_| ())
    }

    /// The first `bytes` of a buffer, once all submitted work is done. Native devices need the poll, browsers ignore it.
    ///
    /// # Errors
    /// [`Error::Lost`] or [`Error::Gpu`], also for trouble in work submitted before.
    pub async fn read(&self, buffer: &Buffer, bytes: u64) -> Result<Vec<u8>, Error> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read back"),
            size: bytes,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("read back") });
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = futures_channel::oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if the caller stopped waiting.
            let _ = sender.send(result);
        });
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|error| self.check().err().unwrap_or_else(|| Error::Gpu(error.to_string())))?;
        let mapped = receiver.await;
        self.check()?;
        match mapped {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Error::Gpu(format!("could not read a buffer of {bytes} bytes: {error}"))),
            Err(_) => return Err(Error::Lost("it closed while a result was read".to_owned())),
        }
        let content = staging.get_mapped_range(..).to_vec();
        staging.destroy();
        Ok(content)
    }

    /// Gives the device up; every later call fails. (Tests of what happens then.)
    pub fn lose(&self) {
        self.device.destroy();
    }

    /// As if the device had reported this. (Tests of what happens then.)
    pub fn inject(&self, error: Error) {
        keep_first(&self.trouble, error);
    }

    /// Waits until what was submitted is done.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Gpu`], [`Error::OutOfMemory`].
    pub(crate) async fn wait(&self, submitted: Submitted) -> Result<(), Error> {
        let wait = wgpu::PollType::Wait { submission_index: Some(submitted.index), timeout: None };
        self.device.poll(wait).map_err(|error| self.check().err().unwrap_or_else(|| Error::Gpu(error.to_string())))?;
        let done = submitted.done.await;
        self.check()?;
        done.map_err(|_| Error::Lost("it closed while it was at work".to_owned()))
    }

    /// Waits until what was written is on the device, so that the next submission does not seem to take that long.
    ///
    /// # Errors
    /// As of [`Self::wait`].
    pub(crate) async fn uploaded(&self) -> Result<(), Error> {
        self.wait(self.submit("uploads", &[])).await
    }

    /// A storage buffer of zeros, `bytes` rounded up to whole words.
    pub(crate) fn storage(&self, label: &str, bytes: u64) -> Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.next_multiple_of(4).max(4),
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// A storage buffer with this content (whole words).
    pub(crate) fn storage_from(&self, label: &str, content: &[u8]) -> Buffer {
        let buffer = self.storage(label, content.len() as u64);
        self.write(&buffer, 0, content);
        buffer
    }

    /// A uniform buffer with this content. (Not `create_buffer_init`: mapping at creation panics on a lost device.)
    pub(crate) fn uniform(&self, label: &str, content: &[u8]) -> Buffer {
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: content.len() as u64,
            usage: BufferUsages::UNIFORM | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.write(&buffer, 0, content);
        buffer
    }

    /// Writes `content` (whole words) at the byte `offset` (a multiple of 4).
    pub(crate) fn write(&self, buffer: &Buffer, offset: u64, content: &[u8]) {
        self.queue.write_buffer(buffer, offset, content);
    }

    /// A pipeline whose layout is what the shader uses; compiled once.
    pub(crate) fn pipeline(&self, label: &str, source: &str, entry_point: &str) -> ComputePipeline {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let compile = || self.compile(label, source, entry_point);
        pipelines.entry((source.to_owned(), entry_point.to_owned())).or_insert_with(compile).clone()
    }

    fn compile(&self, label: &str, source: &str, entry_point: &str) -> ComputePipeline {
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: None,
            module: &module,
            entry_point: Some(entry_point),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        })
    }

    /// Submits a sequence of dispatches; each sees what the one before wrote.
    pub(crate) fn submit(&self, label: &str, dispatches: &[Dispatch<'_>]) -> Submitted {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) });
        for dispatch in dispatches {
            let entries: Vec<_> = dispatch
                .bindings
                .iter()
                .map(|&(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
                .collect();
            let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(label),
                layout: &dispatch.pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
            let mut pass =
                encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None });
            pass.set_pipeline(dispatch.pipeline);
            pass.set_bind_group(0, &bind_group, &[]);
            let [x, y] = dispatch.groups;
            pass.dispatch_workgroups(x, y, 1);
        }
        let index = self.queue.submit([encoder.finish()]);
        let (sender, done) = futures_channel::oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // Nobody need be waiting.
            let _ = sender.send(());
        });
        Submitted { index, done }
    }

    /// Keeps the first trouble the device reports.
    fn watch(&self) {
        let trouble = Arc::clone(&self.trouble);
        self.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let kept = match &error {
                wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory(error.to_string()),
                _ => Error::Gpu(error.to_string()),
            };
            keep_first(&trouble, kept);
        }));
        let trouble = Arc::clone(&self.trouble);
        self.device.set_device_lost_callback(move |reason, message| {
            keep_first(&trouble, Error::Lost(format!("{reason:?}: {message}")));
        });
    }
}

fn keep_first(trouble: &Mutex<Option<Error>>, error: Error) {
    trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
}

/// Work on its way; may be dropped.
pub(crate) struct Submitted {
    index: wgpu::SubmissionIndex,
    done: futures_channel::oneshot::Receiver<()>,
}

/// Destroys buffers when a call ends, whatever way: a browser would wait for its garbage collector.
pub(crate) struct Freed<'a, const N: usize>(pub [&'a Buffer; N]);

impl<const N: usize> Drop for Freed<'_, N> {
    fn drop(&mut self) {
        self.0.iter().for_each(|buffer| buffer.destroy());
    }
}

/// One kernel call.
pub(crate) struct Dispatch<'a> {
    pub pipeline: &'a ComputePipeline,
    /// Buffers by binding, each bound whole.
    pub bindings: &'a [(u32, &'a Buffer)],
    /// Workgroups in x and y.
    pub groups: [u32; 2],
}
