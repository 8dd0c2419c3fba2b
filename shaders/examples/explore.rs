//! explore FILE...: name.TOKENSxLATENTS.wgsl; times sae_encode texts without checks.
use wgpu::util::DeviceExt;
fn main() { pollster::block_on(run()) }
async fn run() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() }).await.unwrap();
    let (device, queue) = adapter.request_device(&wgpu::DeviceDescriptor { required_limits: wgpu::Limits::defaults(), ..Default::default() }).await.unwrap();
    let env = |name: &str, default: u32| std::env::var(name).ok().and_then(|t| t.parse().ok()).unwrap_or(default);
    let (tokens, width, latents, reps) = (env("TOKENS", 576), env("WIDTH", 4096), env("LATENTS", 14336), env("REPS", 4));
    println!("{} T={tokens} width={width} latents={latents} reps={reps}", adapter.get_info().name);
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let buffer = |bytes: u64| device.create_buffer(&wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false });
    let mut seed = 1u32;
    let mut next = move || { seed ^= seed << 13; seed ^= seed >> 17; seed ^= seed << 5; seed };
    let x: Vec<f32> = (0..tokens * width).map(|_| (next() >> 8) as f32 / 16777216.0 - 0.5).collect();
    let w: Vec<u32> = (0..latents * width / 2).map(|_| (next() & 0x83ff_83ff) | 0x2c00_2c00).collect();
    let centred = device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents: bytemuck::cast_slice(&x), usage });
    let weights = device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents: bytemuck::cast_slice(&w), usage });
    let scales = buffer(4); let b_enc = buffer(4 * u64::from(latents)); 
    let th: Vec<f32> = vec![3.0e38; tokens as usize];
    let thresholds = device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents: bytemuck::cast_slice(&th), usage });
    let counts = buffer(4 * u64::from(tokens)); let capacity = 2048u32; let survivors = buffer(8 * u64::from(tokens * capacity));
    let params: [u32; 8] = [tokens, width, 0, latents, 0, capacity, 256, 1];
    let params = device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents: bytemuck::cast_slice(&params), usage: wgpu::BufferUsages::UNIFORM });
    for path in std::env::args().skip(1) {
        let source = std::fs::read_to_string(&path).unwrap();
        let name = std::path::Path::new(&path).file_stem().unwrap().to_str().unwrap().to_owned();
        let (tt, tl) = name.rsplit_once('.').unwrap().1.split_once('x').unwrap();
        let (tt, tl): (u32, u32) = (tt.parse().unwrap(), tl.parse().unwrap());
        for trusted in [false, true] {
            if trusted && !name.contains("-T-") { continue; }
            let begun = std::time::Instant::now();
            let desc = wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(source.as_str().into()) };
            let module = if trusted { unsafe { device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked()) } } else { device.create_shader_module(desc) };
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor { label: None, layout: None, module: &module, entry_point: Some("main"), compilation_options: Default::default(), cache: None });
            let bound: Vec<(u32, &wgpu::Buffer)> = vec![(0, &params), (1, &centred), (2, &weights), (3, &scales), (4, &b_enc), (5, &thresholds), (6, &counts), (7, &survivors)];
            let used: Vec<_> = bound.into_iter().filter(|(at, _)| source.contains(&format!("@binding({at})")) && !(source.contains("//nobind3") && *at == 3)).collect();
            let entries: Vec<_> = used.iter().map(|(binding, buffer)| wgpu::BindGroupEntry { binding: *binding, resource: buffer.as_entire_binding() }).collect();
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &pipeline.get_bind_group_layout(0), entries: &entries });
            let compile = begun.elapsed().as_secs_f64();
            let run = |reps: u32| {
                let mut encoder = device.create_command_encoder(&Default::default());
                for _ in 0..reps {
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    pass.set_pipeline(&pipeline); pass.set_bind_group(0, &group, &[]);
                    pass.dispatch_workgroups(latents.div_ceil(tl), tokens.div_ceil(tt), 1);
                }
                let begun = std::time::Instant::now();
                queue.submit([encoder.finish()]);
                device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
                begun.elapsed().as_secs_f64()
            };
            run(1);
            let one = run(1).min(run(1)); let many = run(1 + reps).min(run(1 + reps));
            let each = (many - one) / f64::from(reps);
            let flop = 2.0 * f64::from(tokens) * f64::from(width) * f64::from(latents);
            println!("{name:32}{} {:8.3} ms {:9.1} GFLOP/s  (first {:.2} ms, compile {:.2} s)", if trusted { " trusted" } else { "        " }, 1e3 * each, 1e-9 * flop / each, 1e3 * one, compile);
        }
    }
}
