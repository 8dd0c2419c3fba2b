//! Which functions can stand for others.

use super::module::{Function, Module};
use std::collections::HashMap;

/// For every function index the one that does its work: its own, unless the function is equal to an earlier one or only
/// calls another.
///
/// Nobody can tell the difference. A `fn` pointer is an index into the table, whose entries keep their places: two of
/// them may hold one function afterwards.
pub fn representatives(module: &Module<'_>) -> Vec<u32> {
    let mut representatives: Vec<u32> = (0..module.function_count()).collect();
    // Callers of merged functions may have become equal themselves.
    while merge_equal(module, &mut representatives) | skip_forwarders(module, &mut representatives) {}
    (0..module.function_count()).map(|index| find(&representatives, index)).collect()
}

/// Follows the chain to the function that stays.
fn find(representatives: &[u32], mut index: u32) -> u32 {
    while representatives[index as usize] != index {
        index = representatives[index as usize];
    }
    index
}

/// Returns whether anything changed.
fn merge_equal(module: &Module<'_>, representatives: &mut [u32]) -> bool {
    let mut changed = false;
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    for (index, function) in module.own_functions() {
        if representatives[index as usize] != index {
            continue;
        }
        let first = *seen.entry(content(function, representatives)).or_insert(index);
        if first != index {
            representatives[index as usize] = first;
            changed = true;
        }
    }
    changed
}

/// Type and body, callees by their representatives in four bytes each: equal for functions that do the same.
fn content(function: &Function<'_>, representatives: &[u32]) -> Vec<u8> {
    let mut content = function.type_index.to_le_bytes().to_vec();
    content.extend(function.locals);
    for instruction in &function.instructions {
        match instruction.callee {
            Some(callee) => {
                content.push(instruction.opcode());
                content.extend(find(representatives, callee).to_le_bytes());
            }
            None => content.extend(instruction.bytes),
        }
    }
    content
}

/// A function that hands its parameters on, in their order, to one of the same type gives way to that one.
fn skip_forwarders(module: &Module<'_>, representatives: &mut [u32]) -> bool {
    let mut changed = false;
    for (index, function) in module.own_functions() {
        if representatives[index as usize] != index {
            continue;
        }
        let Some(callee) = forwards_to(module, function) else { continue };
        let callee = find(representatives, callee);
        let same_type = module.own(callee).is_some_and(|callee| callee.type_index == function.type_index);
        // A circle of forwarders comes back to where it began.
        if same_type && callee != index {
            representatives[index as usize] = callee;
            changed = true;
        }
    }
    changed
}

/// The callee, if the body is `local.get` of each parameter, `call`, `end`.
fn forwards_to(module: &Module<'_>, function: &Function<'_>) -> Option<u32> {
    const LOCAL_GET: u8 = 0x20;
    const CALL: u8 = 0x10;
    let (parameters, rest) = function.instructions.split_at_checked(module.parameters[function.type_index as usize])?;
    let [call, _end] = rest else { return None };
    let in_order = parameters.iter().enumerate().all(|(i, instruction)| {
        // One byte of LEB128 is enough for any function worth it.
        i < 0x80 && instruction.bytes == [LOCAL_GET, i as u8]
    });
    call.callee.filter(|_| in_order && call.opcode() == CALL)
}
