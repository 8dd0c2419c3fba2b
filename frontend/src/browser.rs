//! Small things only a browser can do. Called from event handlers and effects, never while rendering on the server.

use crate::heat::brightness;
use leptos::prelude::*;
use wasm_bindgen::{Clamped, JsCast};
use web_sys::{
    CanvasRenderingContext2d, Element, HtmlCanvasElement, HtmlElement, HtmlInputElement, ImageData, KeyboardEvent,
};

/// Milliseconds of the page's clock.
pub fn now_ms() -> f64 {
    window().performance().map_or(0.0, |clock| clock.now())
}

/// Full address of this page as the visitor sees it.
pub fn page_url() -> String {
    window().location().href().unwrap_or_default()
}

pub fn copy(text: &str) {
    // The promise is left alone: copying either worked or the browser told the visitor why not.
    drop(window().navigator().clipboard().write_text(text));
}

/// Whether a key press belongs to a text field or a shortcut of the browser.
pub fn is_typing(event: &KeyboardEvent) -> bool {
    if event.ctrl_key() || event.meta_key() || event.alt_key() {
        return true;
    }
    let target = event.target().and_then(|target| target.dyn_into::<HtmlElement>().ok());
    target.is_some_and(|element| {
        matches!(element.tag_name().as_str(), "INPUT" | "TEXTAREA" | "SELECT") || element.is_content_editable()
    })
}

/// Moves the focus into the page's own search field, or else into the header's.
pub fn focus_search() -> bool {
    ["main [data-testid=search-input]", ".top [data-testid=search-input]"].into_iter().any(|field| {
        let found = document().query_selector(field).ok().flatten();
        let input = found.and_then(|element| element.dyn_into::<HtmlInputElement>().ok());
        // What is not on the screen has no offset parent.
        input.filter(|input| input.offset_parent().is_some()).is_some_and(|input| {
            input.select();
            input.focus().is_ok()
        })
    })
}

/// Whether the keyboard writes into this element.
pub fn has_focus(element: &Element) -> bool {
    document().active_element().as_ref() == Some(element)
}

/// The visitor's theme: `light`, `dark`, or nothing for the system's.
pub fn theme() -> String {
    document()
        .document_element()
        .and_then(|root| root.get_attribute("data-theme"))
        .filter(|theme| theme == "light" || theme == "dark")
        .unwrap_or_default()
}

/// Sets and remembers the theme; an empty name goes back to the system's.
pub fn set_theme(theme: &str) {
    let Some(root) = document().document_element() else { return };
    let storage = window().local_storage().ok().flatten();
    // A browser may forbid storage; the theme then lasts as long as the page.
    if theme.is_empty() {
        _ = root.remove_attribute("data-theme");
        _ = storage.map(|storage| storage.remove_item("theme"));
    } else {
        _ = root.set_attribute("data-theme", theme);
        _ = storage.map(|storage| storage.set_item("theme", theme));
    }
}

/// Position of a pointer inside an element, as shares of its width and height.
pub fn share_in(element: &HtmlElement, client_x: f64, client_y: f64) -> (f64, f64) {
    let rect = element.get_bounding_client_rect();
    ((client_x - rect.left()) / rect.width().max(1.0), (client_y - rect.top()) / rect.height().max(1.0))
}

/// Longest side of a canvas, in pixels of the screen.
const LONGEST_SIDE: f64 = 4096.0;

/// Height and width of an element in pixels of the screen.
pub fn device_pixels(element: &Element) -> [u32; 2] {
    let ratio = window().device_pixel_ratio();
    let pixels = |side: i32| (f64::from(side) * ratio).round().clamp(1.0, LONGEST_SIDE) as u32;
    [pixels(element.client_height()), pixels(element.client_width())]
}

/// A mask style from an upsampled map: f32 `[height, width]`, full light at `max`.
pub fn mask_style_from_map(map: &[f32], [height, width]: [u32; 2], max: f32) -> Option<String> {
    let pixels: Vec<u8> = map
        .iter()
        .flat_map(|value| {
            let light = if max > 0.0 { brightness(value / max) } else { 0.0 };
            [255, 255, 255, (light * 255.0).round() as u8]
        })
        .collect();
    let canvas: HtmlCanvasElement = document().create_element("canvas").ok()?.dyn_into().ok()?;
    canvas.set_width(width);
    canvas.set_height(height);
    let context: CanvasRenderingContext2d = canvas.get_context("2d").ok()??.dyn_into().ok()?;
    let image = ImageData::new_with_u8_clamped_array_and_sh(Clamped(&pixels), width, height).ok()?;
    context.put_image_data(&image, 0.0, 0.0).ok()?;
    canvas.to_data_url().ok().map(|url| format!("--mask:url({url})"))
}
