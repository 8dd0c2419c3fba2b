//! The canvas that a feature's light is drawn into.

use wgpu::{Texture, TextureFormat, TextureViewDescriptor};

use crate::kernels::feature_draw::FeatureDraw;
use crate::{Error, Gpu, MapShape};

/// One of the two formats that every canvas takes, and that of [`Gpu::picture`].
const FORMAT: TextureFormat = TextureFormat::Rgba8Unorm;

/// Where light is shown.
#[derive(Debug, Clone)]
pub enum Screen {
    /// A canvas that a page has given away.
    #[cfg(target_arch = "wasm32")]
    Canvas(web_sys::OffscreenCanvas),
    /// A picture off the screen, for [`Canvas::pixels`]: only browsers have canvases.
    Picture,
}

/// A [`Screen`] in the hands of one device. When the device is lost, the next one takes the same screen.
pub struct Canvas {
    draw: FeatureDraw,
    /// Height and width that it has now.
    size: [u32; 2],
    #[cfg(target_arch = "wasm32")]
    surface: Option<wgpu::Surface<'static>>,
    picture: Option<Texture>,
}

impl Canvas {
    /// # Errors
    /// [`Error::Canvas`] if the browser gives no access to it, for instance because somebody else draws on it.
    #[cfg_attr(not(target_arch = "wasm32"), expect(unused_variables, reason = "only a browser has canvases"))]
    pub fn new(gpu: &Gpu, screen: &Screen) -> Result<Self, Error> {
        #[cfg(target_arch = "wasm32")]
        let surface = match screen {
            Screen::Canvas(canvas) => {
                let target = wgpu::SurfaceTarget::OffscreenCanvas(canvas.clone());
                let surface = gpu.instance().create_surface(target);
                Some(surface.map_err(|error| Error::Canvas(error.to_string()))?)
            }
            Screen::Picture => None,
        };
        Ok(Self {
            draw: FeatureDraw::new(gpu, FORMAT),
            size: [0; 2],
            #[cfg(target_arch = "wasm32")]
            surface,
            picture: None,
        })
    }

    /// Draws shares of light `[rows, columns]` over all of the screen, which gets the size of `shape`: see
    /// [`FeatureDraw::draw`]. Browsers show it when the calling task ends.
    ///
    /// # Errors
    /// As of [`FeatureDraw::draw`]; [`Error::Canvas`]; trouble that the device has reported before.
    pub fn draw(&mut self, gpu: &Gpu, light: &[f32], shape: MapShape, tint: f32) -> Result<(), Error> {
        gpu.check()?;
        let is_new = self.size != [shape.height, shape.width];
        self.size = [shape.height, shape.width];
        #[cfg(target_arch = "wasm32")]
        if let Some(surface) = &self.surface {
            if is_new {
                surface.configure(gpu.device(), &configuration(shape));
            }
            let frame = match surface.get_current_texture() {
                wgpu::CurrentSurfaceTexture::Success(frame) | wgpu::CurrentSurfaceTexture::Suboptimal(frame) => frame,
                _ => return Err(Error::Canvas("it has no frame to draw into".to_owned())),
            };
            let view = frame.texture.create_view(&TextureViewDescriptor::default());
            self.draw.draw(gpu, light, shape, 1.0, tint, &view)?;
            frame.present();
            return Ok(());
        }
        let old = self.picture.take().filter(|_| !is_new);
        let picture = old.unwrap_or_else(|| gpu.picture(shape.width, shape.height));
        let view = picture.create_view(&TextureViewDescriptor::default());
        self.picture = Some(picture);
        self.draw.draw(gpu, light, shape, 1.0, tint, &view)
    }

    /// What was drawn off the screen: `[height, width, 4]`, premultiplied; nothing before the first drawing, and of a
    /// canvas.
    ///
    /// # Errors
    /// As of [`Gpu::read_picture`].
    pub async fn pixels(&self, gpu: &Gpu) -> Result<Vec<u8>, Error> {
        match &self.picture {
            Some(picture) => gpu.read_picture(picture).await,
            None => Ok(Vec::new()),
        }
    }
}

#[cfg(target_arch = "wasm32")]
fn configuration(shape: MapShape) -> wgpu::SurfaceConfiguration {
    wgpu::SurfaceConfiguration {
        usage: wgpu::TextureUsages::RENDER_ATTACHMENT,
        format: FORMAT,
        width: shape.width,
        height: shape.height,
        present_mode: wgpu::PresentMode::Fifo,
        desired_maximum_frame_latency: 2,
        // The picture below shines through.
        alpha_mode: wgpu::CompositeAlphaMode::PreMultiplied,
        view_formats: Vec::new(),
    }
}
