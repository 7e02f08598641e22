//! Field names that a request has more than once: one environ key has all their values.

use std::collections::HashMap;

use super::environ::Request;
use super::names::Meaning;

/// So many fields that repeat a name are worth going through all fields for, each of them. More are taken in one go, since a
/// head may have thousands where it is allowed to (`limit_request_fields`).
pub const FEW: u32 = 8;

/// What stands between the values (RFC 9110 section 5.3; RFC 6265 section 5.4 for cookies).
pub fn separator(meaning: Meaning) -> &'static [u8] {
    if meaning == Meaning::Cookie {
        b"; "
    } else {
        b","
    }
}

/// A name and its values, in order.
pub type Named<'a> = (&'a [u8], Vec<&'a [u8]>);

/// All values of the fields of one name, in order.
#[cold]
pub fn join<R: Request>(request: &R, name: &[u8], separator: &[u8], joined: &mut Vec<u8>) {
    let values = request.fields().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    joined.clear();
    for (place, value) in values.enumerate() {
        if place > 0 {
            joined.extend_from_slice(separator);
        }
        joined.extend_from_slice(value);
    }
}

/// All names that are there more than once, as they were sent first.
#[cold]
pub fn values<R: Request>(request: &R) -> impl Iterator<Item = Named<'_>> {
    let mut values: HashMap<Vec<u8>, Named<'_>> = HashMap::new();
    for (name, value) in request.fields() {
        values.entry(name.to_ascii_lowercase()).or_insert((name, Vec::new())).1.push(value);
    }
    values.into_values().filter(|(_, values)| values.len() > 1)
}
