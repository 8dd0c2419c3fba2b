//! What the device reaches at most, measured: the yardstick of every row.

use std::time::Instant;

use shaders::{Error, Gpu};
use wgpu::{Buffer, BufferUsages, ComputePipeline};

/// A run takes at least this long, so that submitting and reading back do not count.
const LEAST_SECONDS: f64 = 0.05;
/// Timed runs; the fastest counts.
const RUNS: u32 = 5;
/// Threads of a workgroup in both shaders.
const THREADS: u32 = 256;
/// Multiply-adds of a thread in one round of `fma.wgsl`.
const ROUND_FMAS: u32 = 64;
const FMA_GROUPS: u32 = 8192;
const READ_GROUPS: u32 = 1024;
/// A vector for each thread of `read.wgsl`.
const READ_GRAIN: u64 = 16 * (THREADS * READ_GROUPS) as u64;
/// Buffers that are read at once: together larger than any cache.
const READ_BUFFERS: usize = 4;

pub struct Peaks {
    /// A multiply-add counts as two.
    pub flop_per_second: f64,
    pub bytes_per_second: f64,
}

impl Peaks {
    pub async fn measure(gpu: &Gpu) -> Result<Self, Error> {
        Ok(Self { flop_per_second: flop_per_second(gpu).await?, bytes_per_second: bytes_per_second(gpu).await? })
    }
}

async fn flop_per_second(gpu: &Gpu) -> Result<f64, Error> {
    let pipeline = pipeline(gpu, "fma", include_str!("fma.wgsl"));
    let params = buffer(gpu, "fma params", 16, BufferUsages::UNIFORM);
    let sums = buffer(gpu, "fma sums", 16 * 256, BufferUsages::STORAGE);
    let bindings = bind_group(gpu, &pipeline, &[&params, &sums]);
    let run = async |rounds: u32| {
        let [half, never] = [0.5f32, -1.0].map(f32::to_le_bytes);
        gpu.queue().write_buffer(&params, 0, &[rounds.to_le_bytes(), half, half, never].concat());
        let (seconds, sum) = timed(gpu, &pipeline, &bindings, FMA_GROUPS, 1, &sums).await?;
        // The first component of four chains, each of which has come to 1.
        check("fma", sum, 4.0, 0.2)?;
        Ok::<f64, Error>(seconds)
    };
    let fmas = f64::from(ROUND_FMAS) * f64::from(THREADS) * f64::from(FMA_GROUPS);
    Ok(2.0 * fmas / fastest(run).await?)
}

async fn bytes_per_second(gpu: &Gpu) -> Result<f64, Error> {
    let pipeline = pipeline(gpu, "read", include_str!("read.wgsl"));
    let bytes = gpu.max_binding_bytes().min(128 << 20) / READ_GRAIN * READ_GRAIN;
    // A CPU's memory may be short, and its caches are small: it reads one four times.
    let count = if gpu.is_software() { 1 } else { READ_BUFFERS };
    let ones: Vec<u8> = 1f32.to_le_bytes().repeat(READ_GRAIN as usize / 4);
    let values: Vec<Buffer> = (0..count).map(|_| buffer(gpu, "read values", bytes, BufferUsages::STORAGE)).collect();
    for values in &values {
        for offset in (0..bytes).step_by(ones.len()) {
            gpu.queue().write_buffer(values, offset, &ones);
        }
    }
    let sums = buffer(gpu, "read sums", 4 * u64::from(THREADS * READ_GROUPS), BufferUsages::STORAGE);
    let buffers: Vec<&Buffer> = values.iter().cycle().take(READ_BUFFERS).chain([&sums]).collect();
    let bindings = bind_group(gpu, &pipeline, &buffers);
    let all_bytes = READ_BUFFERS as f64 * bytes as f64;
    let of_a_thread = all_bytes / 4.0 / f64::from(THREADS * READ_GROUPS);
    let run = async |passes: u32| {
        let (seconds, sum) = timed(gpu, &pipeline, &bindings, READ_GROUPS, passes, &sums).await?;
        check("read", sum, of_a_thread as f32, 0.0)?;
        Ok::<f64, Error>(seconds)
    };
    Ok(all_bytes / fastest(run).await?)
}

/// Seconds of one repetition, when enough of them are run together.
async fn fastest(run: impl AsyncFn(u32) -> Result<f64, Error>) -> Result<f64, Error> {
    // Also the warm-up.
    run(1).await?;
    let mut repetitions = 1u32;
    while run(repetitions).await? < LEAST_SECONDS && repetitions < 1 << 24 {
        repetitions *= 2;
    }
    let mut seconds = f64::INFINITY;
    for _ in 0..RUNS {
        seconds = seconds.min(run(repetitions).await? / f64::from(repetitions));
    }
    Ok(seconds)
}

/// Seconds until all `passes` are done and read back, and the first sum.
async fn timed(
    gpu: &Gpu,
    pipeline: &ComputePipeline,
    bindings: &wgpu::BindGroup,
    groups: u32,
    passes: u32,
    sums: &Buffer,
) -> Result<(f64, f32), Error> {
    gpu.settle().await?;
    let start = Instant::now();
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("peak") });
    let mut pass =
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("peak"), timestamp_writes: None });
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, bindings, &[]);
    for _ in 0..passes {
        pass.dispatch_workgroups(groups, 1, 1);
    }
    // Ends the pass.
    drop(pass);
    gpu.queue().submit([encoder.finish()]);
    let sum = gpu.read(sums, 4).await?;
    let seconds = start.elapsed().as_secs_f64();
    Ok((seconds, bytemuck::pod_read_unaligned(&sum)))
}

fn check(what: &str, sum: f32, expected: f32, tolerance: f32) -> Result<(), Error> {
    // Written so that NaN fails.
    let close = (sum - expected).abs() <= tolerance;
    if close { Ok(()) } else { Err(Error::WrongAnswer(format!("{what} gives {sum} where {expected} is right"))) }
}

fn pipeline(gpu: &Gpu, label: &str, source: &str) -> ComputePipeline {
    let module = gpu.device().create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    gpu.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(label),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    })
}

fn buffer(gpu: &Gpu, label: &str, size: u64, usage: BufferUsages) -> Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size,
        usage: usage | BufferUsages::COPY_DST | BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

fn bind_group(gpu: &Gpu, pipeline: &ComputePipeline, buffers: &[&Buffer]) -> wgpu::BindGroup {
    let entries: Vec<_> = (0..)
        .zip(buffers)
        .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
        .collect();
    gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("peak"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    })
}
