//! Drawing: a pipeline that covers its target, and pictures off the screen.

use wgpu::{Buffer, RenderPipeline, Texture, TextureFormat, TextureUsages, TextureView};

use crate::{Error, Gpu};

impl Gpu {
    /// A picture to draw into where there is no canvas, RGBA8.
    #[must_use]
    pub fn picture(&self, width: u32, height: u32) -> Texture {
        self.device().create_texture(&wgpu::TextureDescriptor {
            label: Some("picture"),
            size: wgpu::Extent3d { width, height, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: TextureFormat::Rgba8Unorm,
            usage: TextureUsages::RENDER_ATTACHMENT | TextureUsages::COPY_SRC,
            view_formats: &[],
        })
    }

    /// The pixels of a [`Self::picture`], `[height, width, 4]`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_picture(&self, picture: &Texture) -> Result<Vec<u8>, Error> {
        let row_bytes = 4 * picture.width();
        let padded = row_bytes.next_multiple_of(wgpu::COPY_BYTES_PER_ROW_ALIGNMENT);
        let bytes = u64::from(padded) * u64::from(picture.height());
        let rows = self.storage("picture rows", bytes);
        let mut encoder =
            self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("picture rows") });
        let layout = wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(padded), rows_per_image: None };
        let destination = wgpu::TexelCopyBufferInfo { buffer: &rows, layout };
        encoder.copy_texture_to_buffer(picture.as_image_copy(), destination, picture.size());
        self.queue().submit([encoder.finish()]);
        let content = self.read(&rows, bytes).await?;
        rows.destroy();
        let whole = content.chunks_exact(padded as usize);
        Ok(whole.flat_map(|row| &row[..row_bytes as usize]).copied().collect())
    }

    /// A pipeline that draws one triangle over its whole target: `cover` places it, `main` colours it.
    pub(crate) fn render_pipeline(&self, label: &str, source: &str, format: TextureFormat) -> RenderPipeline {
        let module = self.device().create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        self.device().create_render_pipeline(&wgpu::RenderPipelineDescriptor {
            label: Some(label),
            layout: None,
            vertex: wgpu::VertexState {
                module: &module,
                entry_point: Some("cover"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                buffers: &[],
            },
            primitive: wgpu::PrimitiveState::default(),
            depth_stencil: None,
            multisample: wgpu::MultisampleState::default(),
            fragment: Some(wgpu::FragmentState {
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                targets: &[Some(format.into())],
            }),
            multiview_mask: None,
            cache: None,
        })
    }

    /// Covers `view`: nothing of what was there stays.
    pub(crate) fn draw(&self, label: &str, pipeline: &RenderPipeline, bindings: &[(u32, &Buffer)], view: &TextureView) {
        let entries: Vec<_> = bindings
            .iter()
            .map(|&(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let bind_group = self.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(label),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let ops = wgpu::Operations { load: wgpu::LoadOp::Clear(wgpu::Color::TRANSPARENT), store: wgpu::StoreOp::Store };
        let attachment = wgpu::RenderPassColorAttachment { view, depth_slice: None, resolve_target: None, ops };
        let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) });
        let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
            label: Some(label),
            color_attachments: &[Some(attachment)],
            depth_stencil_attachment: None,
            timestamp_writes: None,
            occlusion_query_set: None,
            multiview_mask: None,
        });
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        pass.draw(0..3, 0..1);
        // Ends the pass.
        drop(pass);
        self.queue().submit([encoder.finish()]);
    }
}
