//! One feature's patch activations as light over a picture (`wgsl/feature_draw.wgsl`): drawn straight into a canvas,
//! nothing is read back.

use bytemuck::{Pod, Zeroable};
use wgpu::{RenderPipeline, TextureFormat, TextureView};

use crate::cpu::feature_draw::check;
use crate::{Error, Gpu, MapShape};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/feature_draw.wgsl"));

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    columns: u32,
    height: u32,
    width: u32,
    inverse_scale: f32,
    tint: f32,
    padding: [u32; 2],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The pipeline for targets of one format.
pub struct FeatureDraw {
    pipeline: RenderPipeline,
}

impl FeatureDraw {
    /// `format` is the canvas's, without sRGB: levels are written as they are.
    #[must_use]
    pub fn new(gpu: &Gpu, format: TextureFormat) -> Self {
        Self { pipeline: gpu.render_pipeline("feature_draw", WGSL, format) }
    }

    /// Draws `patches` `[rows, columns]` into all of `view` `[height, width]`, whose alpha is premultiplied: full light
    /// at the activation `scale_max`, coloured by the share `tint`.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::NotFinite`] with the number of the patch; [`Error::Size`] if `scale_max` is not from
    /// 1e-30 to 1e30, `tint` not from 0 to 1, or the view has another size. Trouble on the device comes out of
    /// [`Gpu::check`].
    pub fn draw(
        &self,
        gpu: &Gpu,
        patches: &[f32],
        shape: MapShape,
        scale_max: f32,
        tint: f32,
        view: &TextureView,
    ) -> Result<(), Error> {
        check(patches, shape, scale_max, tint)?;
        let size = view.texture().size();
        let sides = [("height of the view", size.height, shape.height), ("width of the view", size.width, shape.width)];
        for (what, given, expected) in sides {
            if given != expected {
                return Err(Error::Size { what, given: given.into(), expected: expected.to_string() });
            }
        }
        let params = Params {
            rows: shape.rows,
            columns: shape.columns,
            height: shape.height,
            width: shape.width,
            inverse_scale: 1.0 / scale_max,
            tint,
            padding: [0; 2],
        };
        let params = gpu.uniform("feature_draw params", bytemuck::bytes_of(&params));
        let patches = gpu.storage_from("feature_draw patches", bytemuck::cast_slice(patches));
        gpu.draw("feature_draw", &self.pipeline, &[(0, &params), (1, &patches)], view);
        params.destroy();
        patches.destroy();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::WGSL;
    use crate::cpu::feature_draw::{DIM, WARM};

    #[test]
    fn shader_and_twin_have_the_same_light() {
        let [red, green, blue] = WARM;
        assert!(WGSL.contains(&format!("const DIM: f32 = {DIM:?};")));
        assert!(WGSL.contains(&format!("const WARM: vec3<f32> = vec3<f32>({red:?}, {green:?}, {blue:?});")));
    }
}
