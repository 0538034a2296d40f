//! What a node keeps between its runs as JSON files in the data directory.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned};

use crate::{datadir::DataDir, failure::Failure};

/// Reads a file of the data directory; what does not exist yet is the default.
pub(crate) fn load<T: DeserializeOwned + Default>(dir: &DataDir, name: &str) -> Result<T, Failure> {
    let Some(bytes) = dir.read(name)? else {
        return Ok(T::default());
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let path = dir.path().join(name);
        let path = path.display();
        Failure::here(format!("{path} is damaged ({error}); restore it from a backup, or move it away to start afresh"))
    })
}

/// Replaces a file of the data directory.
pub(crate) fn save<T: Serialize>(dir: &DataDir, name: &str, value: &T) -> Result<(), Failure> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| Failure::here(format!("{name}: {error}")))?;
    bytes.push(b'\n');
    dir.write(name, &bytes)
}

/// A ticket's secret, hexadecimal in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Secret(pub(crate) [u8; 16]);

impl Secret {
    /// One that nobody can guess.
    pub(crate) fn random() -> Result<Self, Failure> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|error| Failure::here(format!("the operating system gives no randomness: {error}")))?;
        Ok(Secret(bytes))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:032x}", u128::from_be_bytes(self.0)))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_hex.then(|| u128::from_str_radix(&text, 16).ok()).flatten();
        number.map(|number| Secret(number.to_be_bytes())).ok_or_else(|| de::Error::custom("not a secret"))
    }
}

/// A value with one text form, kept in that form: `#[serde(with = "store::text")]`.
pub(crate) mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::tests::Scratch;

    #[test]
    fn a_damaged_file_names_itself_and_the_way_out() {
        let Scratch(dir) = &Scratch::new("store");
        assert!(load::<Vec<u8>>(dir, "x.json").unwrap().is_empty());
        dir.write("x.json", b"[1, 2").unwrap();
        let failure = load::<Vec<u8>>(dir, "x.json").unwrap_err();
        assert!(failure.message.contains("x.json") && failure.message.contains("backup"), "{failure}");
    }

    #[test]
    fn secrets_survive_their_file_form() {
        let secret = Secret([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        let text = serde_json::to_string(&secret).unwrap();
        assert_eq!(text, "\"000102030405060708090a0b0c0d0eff\"");
        assert_eq!(serde_json::from_str::<Secret>(&text).unwrap(), secret);
        assert!(serde_json::from_str::<Secret>("\"+00102030405060708090a0b0c0d0eff\"").is_err());
        assert!(serde_json::from_str::<Secret>("\"00\"").is_err());
    }
}
