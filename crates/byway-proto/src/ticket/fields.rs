//! The fields in a ticket's body: tag, length, value, with both numbers as LEB128 in its shortest form.

use alloc::vec::Vec;

/// The bits of a number that one LEB128 byte carries; the eighth says that another byte follows.
const GROUP_BITS: u32 = 7;
const MORE: u8 = 0x80;

/// Appends a number.
pub(super) fn push_varint(mut number: u32, out: &mut Vec<u8>) {
    while number >= u32::from(MORE) {
        out.push(number as u8 | MORE);
        number >>= GROUP_BITS;
    }
    out.push(number as u8);
}

/// Reads a number that [`push_varint`] wrote; also returns the bytes after it. A longer form than needed is `None`.
pub(super) fn split_varint(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (mut number, mut rest) = (0_u32, bytes);
    for shift in (0..u32::BITS).step_by(GROUP_BITS as usize) {
        let (byte, after) = rest.split_first()?;
        rest = after;
        let group = u32::from(byte & !MORE);
        let shifted = group << shift;
        if shifted >> shift != group || (*byte == 0 && shift > 0) {
            return None;
        }
        number |= shifted;
        if byte & MORE == 0 {
            return Some((number, rest));
        }
    }
    None
}

/// Appends a field, unless `out` would grow beyond `max` bytes; says whether it did.
pub(super) fn push_field(tag: u32, value: &[u8], max: usize, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    push_varint(tag, out);
    push_varint(u32::try_from(value.len()).unwrap_or(u32::MAX), out);
    if out.len().saturating_add(value.len()) > max {
        out.truncate(before);
        return false;
    }
    out.extend(value);
    true
}

/// Reads a field's tag and value; also returns the bytes after it.
pub(super) fn split_field(bytes: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let (tag, rest) = split_varint(bytes)?;
    let (len, rest) = split_varint(rest)?;
    let (value, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    Some((tag, value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_have_one_form() {
        for (number, form) in [(0, &[0][..]), (127, &[0x7f]), (128, &[0x80, 1]), (300, &[0xac, 2])] {
            let mut bytes = Vec::new();
            push_varint(number, &mut bytes);
            assert_eq!(bytes, form);
        }
        assert_eq!(split_varint(&[0x80, 0]), None);
        assert_eq!(split_varint(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Some((u32::MAX, &[][..])));
        assert_eq!(split_varint(&[0xff, 0xff, 0xff, 0xff, 0x10]), None);
        assert_eq!(split_varint(&[0xff; 9]), None);
        assert_eq!(split_varint(&[0x80]), None);
    }

    #[test]
    fn a_field_without_room_leaves_nothing_behind() {
        let mut bytes = Vec::new();
        assert!(push_field(1, &[9; 3], 5, &mut bytes));
        assert!(!push_field(2, &[], 6, &mut bytes));
        assert_eq!(bytes, [1, 3, 9, 9, 9]);
    }

    proptest! {
        #[test]
        fn fields_round_trip(tag: u32, value: Vec<u8>, tail: Vec<u8>) {
            let mut bytes = Vec::new();
            prop_assert!(push_field(tag, &value, usize::MAX, &mut bytes));
            bytes.extend(&tail);
            prop_assert_eq!(split_field(&bytes), Some((tag, &value[..], &tail[..])));
        }

        #[test]
        fn no_bytes_panic_and_numbers_are_canonical(bytes: Vec<u8>) {
            let _ = split_field(&bytes);
            if let Some((number, rest)) = split_varint(&bytes) {
                let mut again = Vec::new();
                push_varint(number, &mut again);
                prop_assert_eq!(&again, &bytes[..bytes.len() - rest.len()]);
            }
        }
    }
}
