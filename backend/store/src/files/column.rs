//! Columns: from Rust values to Arrow arrays, and one row's cell back again.

use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, GenericListArray, PrimitiveArray, RecordBatch,
    StringArray,
    builder::{ListBuilder, PrimitiveBuilder, StringBuilder},
    types::{Float32Type, UInt16Type, UInt32Type, UInt64Type},
};
use half::f16;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;

type List = GenericListArray<i32>;

pub(super) fn strings<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

pub(super) fn u32s(values: impl Iterator<Item = u32>) -> ArrayRef {
    Arc::new(PrimitiveArray::<UInt32Type>::from_iter_values(values))
}

pub(super) fn u64s(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(PrimitiveArray::<UInt64Type>::from_iter_values(values))
}

pub(super) fn f32s(values: impl Iterator<Item = f32>) -> ArrayRef {
    Arc::new(PrimitiveArray::<Float32Type>::from_iter_values(values))
}

pub(super) fn optional_f32s(values: impl Iterator<Item = Option<f32>>) -> ArrayRef {
    Arc::new(values.collect::<PrimitiveArray<Float32Type>>())
}

pub(super) fn bools(values: impl Iterator<Item = bool>) -> ArrayRef {
    Arc::new(values.map(Some).collect::<BooleanArray>())
}

pub(super) fn binaries<'a>(values: impl Iterator<Item = &'a [u8]>) -> ArrayRef {
    Arc::new(BinaryArray::from_iter_values(values))
}

pub(super) fn json<'a, T: Serialize + 'a>(values: impl Iterator<Item = &'a T>) -> Result<ArrayRef, serde_json::Error> {
    let texts = values.map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(strings(texts.iter().map(String::as_str)))
}

pub(super) fn string_lists<'a>(values: impl Iterator<Item = &'a [String]>) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for list in values {
        list.iter().for_each(|text| lists.values().append_value(text));
        lists.append(true);
    }
    Arc::new(lists.finish())
}

pub(super) fn u16_lists<'a>(values: impl Iterator<Item = &'a [u16]>) -> ArrayRef {
    primitive_lists::<UInt16Type>(values)
}

pub(super) fn u32_lists<'a>(values: impl Iterator<Item = &'a [u32]>) -> ArrayRef {
    primitive_lists::<UInt32Type>(values)
}

pub(super) fn f32_lists<'a>(values: impl Iterator<Item = &'a [f32]>) -> ArrayRef {
    primitive_lists::<Float32Type>(values)
}

/// Lists of activations, kept as `f32` for every reader's sake but rounded to half precision (11 significant bits):
/// a heat map needs no more, and the zero bits cost nothing after compression.
pub(super) fn activation_lists<'a>(values: impl Iterator<Item = &'a [f32]>) -> ArrayRef {
    let mut lists = ListBuilder::new(PrimitiveBuilder::<Float32Type>::new());
    for list in values {
        list.iter().for_each(|&value| lists.values().append_value(rounded_to_half(value)));
        lists.append(true);
    }
    Arc::new(lists.finish())
}

/// Nearest half-precision number; values past its range stay as they are rather than become infinite.
pub(super) fn rounded_to_half(value: f32) -> f32 {
    let rounded = f16::from_f32(value);
    if rounded.is_finite() { rounded.to_f32() } else { value }
}

fn primitive_lists<'a, P: ArrowPrimitiveType>(values: impl Iterator<Item = &'a [P::Native]>) -> ArrayRef {
    let mut lists = ListBuilder::new(PrimitiveBuilder::<P>::new());
    for list in values {
        lists.values().append_slice(list);
        lists.append(true);
    }
    Arc::new(lists.finish())
}

/// One row of a batch; a cell is read by its column's name, and every failure names that column.
pub(crate) struct Row<'a> {
    pub batch: &'a RecordBatch,
    pub index: usize,
}

impl Row<'_> {
    pub fn string(&self, name: &str) -> Result<String, String> {
        Ok(self.cell::<StringArray>(name)?.value(self.index).to_owned())
    }

    pub fn u32(&self, name: &str) -> Result<u32, String> {
        Ok(self.cell::<PrimitiveArray<UInt32Type>>(name)?.value(self.index))
    }

    pub fn u64(&self, name: &str) -> Result<u64, String> {
        Ok(self.cell::<PrimitiveArray<UInt64Type>>(name)?.value(self.index))
    }

    pub fn f32(&self, name: &str) -> Result<f32, String> {
        Ok(self.cell::<PrimitiveArray<Float32Type>>(name)?.value(self.index))
    }

    /// `None` where there is no value, and in files from before there was such a column.
    pub fn optional_f32(&self, name: &str) -> Result<Option<f32>, String> {
        let Some(column) = self.batch.column_by_name(name) else { return Ok(None) };
        if column.is_null(self.index) { Ok(None) } else { self.f32(name).map(Some) }
    }

    pub fn bool(&self, name: &str) -> Result<bool, String> {
        Ok(self.cell::<BooleanArray>(name)?.value(self.index))
    }

    pub fn binary(&self, name: &str) -> Result<Vec<u8>, String> {
        Ok(self.cell::<BinaryArray>(name)?.value(self.index).to_vec())
    }

    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        let text = self.cell::<StringArray>(name)?.value(self.index);
        serde_json::from_str(text).map_err(|error| format!("column {name}, row {}: {error}", self.index))
    }

    pub fn strings(&self, name: &str) -> Result<Vec<String>, String> {
        let list = self.list::<StringArray>(name)?;
        Ok((0..list.len()).map(|item| list.value(item).to_owned()).collect())
    }

    pub fn u16s(&self, name: &str) -> Result<Vec<u16>, String> {
        Ok(self.list::<PrimitiveArray<UInt16Type>>(name)?.values().to_vec())
    }

    pub fn u32s(&self, name: &str) -> Result<Vec<u32>, String> {
        Ok(self.list::<PrimitiveArray<UInt32Type>>(name)?.values().to_vec())
    }

    pub fn f32s(&self, name: &str) -> Result<Vec<f32>, String> {
        Ok(self.list::<PrimitiveArray<Float32Type>>(name)?.values().to_vec())
    }

    /// The whole column, after checking that it exists, has the type, and has a value in this row.
    fn cell<A: Array + 'static>(&self, name: &str) -> Result<&A, String> {
        let column = self.batch.column_by_name(name).ok_or_else(|| format!("there is no column {name}"))?;
        let typed = column.as_any().downcast_ref::<A>();
        let typed = typed.ok_or_else(|| format!("column {name} has type {}", column.data_type()))?;
        if typed.is_null(self.index) {
            return Err(format!("column {name}, row {}: no value", self.index));
        }
        Ok(typed)
    }

    fn list<A: Array + Clone + 'static>(&self, name: &str) -> Result<A, String> {
        let items = self.cell::<List>(name)?.value(self.index);
        let typed = items.as_any().downcast_ref::<A>();
        let typed = typed.ok_or_else(|| format!("column {name} is a list of {}", items.data_type()))?;
        if typed.null_count() > 0 {
            return Err(format!("column {name}, row {}: an item has no value", self.index));
        }
        Ok(typed.clone())
    }
}

/// Two lists that must be equally long: `names` are their columns.
pub(super) fn same_length(names: [&str; 2], lengths: [usize; 2]) -> Result<(), String> {
    if lengths[0] == lengths[1] {
        return Ok(());
    }
    Err(format!("{} has {} items and {} has {}", names[0], lengths[0], names[1], lengths[1]))
}
