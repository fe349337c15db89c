//! Encryption of single fields of a payload: AES-256-GCM, bound to queue, job id
//! and field, so that a sealed value cannot be moved to another job.
//!
//! A sealed field holds `{"$sealed":{"v":1,"kid":…,"iv":…,"ct":…}}`, base64 of a
//! 12-byte nonce and of ciphertext with tag; the plaintext is the field's JSON
//! text. The additional data are the JSON text
//! `["mpanel-fleet/seal/1",queue,job id,JSON pointer]`. `docs/guide/encryption.md`
//! has the same in Node. The crate draws no random numbers: the source is an argument.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::SecureRandom,
};
use serde_json::{Value, json};

use crate::{
    ids::{JobId, QueueName},
    unique::pointer,
};

const MARK: &str = "$sealed";
const VERSION: u64 = 1;
/// Deepest place in a payload where a sealed field is looked for.
const DEPTH: usize = 128;

/// A value could not be sealed or unsealed. The text holds no payload and no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A key has another form.
    #[error("key `{0}` is not usable: 32 bytes in base64 are expected")]
    Key(String),
    /// Two keys have one id.
    #[error("key id `{0}` is given twice")]
    KeyTwice(String),
    /// The payload lacks a field that is to be sealed.
    #[error("the payload has no field `{0}` to seal")]
    MissingField(String),
    /// There is no random number to be had.
    #[error("the system gave no random numbers")]
    Random,
    /// A field is sealed with a key that is not in the keyring.
    #[error("field `{field}` is sealed with key `{kid}`, which this process does not have")]
    MissingKey {
        /// The field.
        field: String,
        /// The key's id.
        kid: String,
    },
    /// The value is not what was sealed for this queue, job and field with this key.
    #[error(
        "field `{field}` cannot be unsealed with key `{kid}`: it was changed, or sealed for another queue, job or field"
    )]
    Tampered {
        /// The field.
        field: String,
        /// The key's id.
        kid: String,
    },
    /// The payload is no JSON.
    #[error("the payload with sealed fields is no JSON")]
    NotJson,
}

/// Keys by id. New values are sealed with one of them; all of them unseal.
pub struct Keyring {
    active: String,
    keys: BTreeMap<String, LessSafeKey>,
}

impl fmt::Debug for Keyring {
    /// Ids only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("active", &self.active)
            .field("ids", &self.keys.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Keyring {
    /// A keyring that seals with the key `id`: 32 random bytes in base64.
    ///
    /// ```
    /// use mpanel_protocol::seal::Keyring;
    ///
    /// // openssl rand -base64 32
    /// let keyring = Keyring::new("2026-11", "x5sPSBwrMlHkSn8JRSmsI8XXzXdvYEgV7pGX8HMZ6QI=")?
    ///     .and("2026-05", "mHk4kQ2OZ0X5o0k4dUq1m5b3cJHf4yOq8u0eS0XkqkY=")?;
    /// # Ok::<(), mpanel_protocol::seal::SealError>(())
    /// ```
    ///
    /// # Errors
    /// [`SealError::Key`].
    pub fn new(id: &str, base64: &str) -> Result<Self, SealError> {
        Self { active: id.to_owned(), keys: BTreeMap::new() }.and(id, base64)
    }

    /// With a further key, which only unseals: one of before, or of after a rotation.
    ///
    /// # Errors
    /// [`SealError::Key`], [`SealError::KeyTwice`].
    pub fn and(mut self, id: &str, base64: &str) -> Result<Self, SealError> {
        let bad = || SealError::Key(id.to_owned());
        let bytes = STANDARD.decode(base64.trim()).map_err(|_| bad())?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| bad())?);
        if self.keys.insert(id.to_owned(), key).is_some() {
            return Err(SealError::KeyTwice(id.to_owned()));
        }
        Ok(self)
    }

    /// Seals `fields` (JSON pointers, or names of fields at the top) of `data`.
    ///
    /// # Errors
    /// [`SealError`]; `data` may then be sealed in part.
    pub fn seal(
        &self,
        data: &mut Value,
        fields: &[String],
        queue: &QueueName,
        id: &JobId,
        random: &dyn SecureRandom,
    ) -> Result<(), SealError> {
        let Some(key) = self.keys.get(&self.active) else {
            return Err(SealError::Key(self.active.clone()));
        };
        for field in fields {
            let field = pointer(field);
            let place = data.pointer_mut(&field).ok_or_else(|| SealError::MissingField(field.clone()))?;
            let mut nonce = [0; NONCE_LEN];
            random.fill(&mut nonce).map_err(|_| SealError::Random)?;
            let mut text = place.to_string().into_bytes();
            let aad = Aad::from(bound_to(queue, id, &field));
            key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
                .map_err(|_| SealError::Random)?;
            *place = json!({ MARK: {
                "v": VERSION, "kid": self.active, "iv": STANDARD.encode(nonce), "ct": STANDARD.encode(text),
            }});
        }
        Ok(())
    }
}

/// The payload in clear; `None` for `keyring` when the process has no keys. A
/// payload without sealed fields comes back as it is, without being parsed.
///
/// # Errors
/// [`SealError::MissingKey`], [`SealError::Tampered`], [`SealError::NotJson`].
pub fn unseal<'d>(
    data: &'d str,
    queue: &QueueName,
    id: &JobId,
    keyring: Option<&Keyring>,
) -> Result<Cow<'d, str>, SealError> {
    if !data.contains("\"$sealed\"") {
        return Ok(Cow::Borrowed(data));
    }
    let Ok(mut value) = serde_json::from_str::<Value>(data) else { return Err(SealError::NotJson) };
    let mut opened = 0;
    walk(&mut value, &mut String::new(), DEPTH, &mut |place, field| {
        let Some(sealed) = Sealed::read(place) else { return Ok(false) };
        *place = sealed.open(queue, id, field, keyring)?;
        opened += 1;
        Ok(true)
    })?;
    // Text that only mentions the mark stays byte for byte.
    Ok(if opened == 0 { Cow::Borrowed(data) } else { Cow::Owned(value.to_string()) })
}

/// A sealed value as it stands in a payload.
struct Sealed {
    kid: String,
    nonce: Option<[u8; NONCE_LEN]>,
    text: Option<Vec<u8>>,
}

impl Sealed {
    fn read(value: &Value) -> Option<Self> {
        let object = value.as_object().filter(|o| o.len() == 1)?;
        let body = object.get(MARK)?.as_object()?;
        if body.get("v")?.as_u64()? != VERSION {
            return None;
        }
        let bytes = |name: &str| body.get(name)?.as_str().map(|text| STANDARD.decode(text));
        Some(Self {
            kid: body.get("kid")?.as_str()?.to_owned(),
            nonce: bytes("iv")?.ok().and_then(|b| b.try_into().ok()),
            text: bytes("ct")?.ok(),
        })
    }

    fn open(
        self,
        queue: &QueueName,
        id: &JobId,
        field: &str,
        keyring: Option<&Keyring>,
    ) -> Result<Value, SealError> {
        let Self { kid, nonce, text } = self;
        let Some(key) = keyring.and_then(|k| k.keys.get(&kid)) else {
            return Err(SealError::MissingKey { field: field.to_owned(), kid });
        };
        let clear = match (nonce, text) {
            (Some(nonce), Some(mut text)) => {
                let aad = Aad::from(bound_to(queue, id, field));
                key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut text)
                    .ok()
                    .and_then(|clear| serde_json::from_slice(clear).ok())
            }
            _ => None,
        };
        clear.ok_or(SealError::Tampered { field: field.to_owned(), kid })
    }
}

fn bound_to(queue: &QueueName, id: &JobId, field: &str) -> String {
    json!(["mpanel-fleet/seal/1", queue, id, field]).to_string()
}

/// Visits every value with its pointer; what `visit` took is not entered.
fn walk(
    value: &mut Value,
    path: &mut String,
    depth: usize,
    visit: &mut impl FnMut(&mut Value, &str) -> Result<bool, SealError>,
) -> Result<(), SealError> {
    if depth == 0 || visit(value, path)? {
        return Ok(());
    }
    let length = path.len();
    let mut enter = |child: &mut Value, name: &str| {
        path.push_str(&pointer_step(name));
        let entered = walk(child, path, depth - 1, visit);
        path.truncate(length);
        entered
    };
    match value {
        Value::Array(items) => {
            items.iter_mut().enumerate().try_for_each(|(i, item)| enter(item, &i.to_string()))
        }
        Value::Object(map) => map.iter_mut().try_for_each(|(name, item)| enter(item, name)),
        _ => Ok(()),
    }
}

fn pointer_step(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;

    const K1: &str = "x5sPSBwrMlHkSn8JRSmsI8XXzXdvYEgV7pGX8HMZ6QI=";
    const K2: &str = "mHk4kQ2OZ0X5o0k4dUq1m5b3cJHf4yOq8u0eS0XkqkY=";

    fn place() -> (QueueName, JobId) {
        (QueueName::new("mails").unwrap(), JobId::stored("order-1"))
    }

    fn sealed(fields: &[&str]) -> (Value, String) {
        let (queue, id) = place();
        let data = json!({"to": "a@b", "password": "hunter2", "deep": {"a/b": [1, {"pin": 42}]}});
        let mut sealed = data.clone();
        let fields: Vec<String> = fields.iter().map(|f| (*f).to_owned()).collect();
        let keyring = Keyring::new("k1", K1).unwrap();
        keyring.seal(&mut sealed, &fields, &queue, &id, &SystemRandom::new()).unwrap();
        (data, sealed.to_string())
    }

    #[test]
    fn what_was_sealed_comes_back() {
        let (queue, id) = place();
        let (data, text) = sealed(&["password", "/deep/a~1b/1/pin"]);
        assert!(!text.contains("hunter2") && !text.contains("42}"), "{text}");
        let later = Keyring::new("k2", K2).unwrap().and("k1", K1).unwrap();
        let clear = unseal(&text, &queue, &id, Some(&later)).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&clear).unwrap(), data);
    }

    #[test]
    fn a_value_is_bound_to_its_place() {
        let (queue, id) = place();
        let (_, text) = sealed(&["password"]);
        let keyring = Keyring::new("k1", K1).unwrap();
        let tampered = |r: Result<Cow<'_, str>, SealError>| matches!(r, Err(SealError::Tampered { .. }));
        assert!(tampered(unseal(&text, &queue, &JobId::stored("order-2"), Some(&keyring))));
        assert!(tampered(unseal(&text, &QueueName::new("other").unwrap(), &id, Some(&keyring))));
        let moved = text.replace("\"password\"", "\"secret\"");
        assert!(tampered(unseal(&moved, &queue, &id, Some(&keyring))));
        let wrong = Keyring::new("k1", K2).unwrap();
        assert!(tampered(unseal(&text, &queue, &id, Some(&wrong))));
        for broken in
            [text.replacen("\"ct\":\"", "\"ct\":\"A", 1), text.replacen("\"iv\":\"", "\"iv\":\"AAAA", 1)]
        {
            assert!(tampered(unseal(&broken, &queue, &id, Some(&keyring))), "{broken}");
        }
    }

    #[test]
    fn a_missing_key_is_said() {
        let (queue, id) = place();
        let (_, text) = sealed(&["password"]);
        let missing = SealError::MissingKey { field: "/password".into(), kid: "k1".into() };
        assert_eq!(unseal(&text, &queue, &id, None), Err(missing.clone()));
        assert_eq!(unseal(&text, &queue, &id, Some(&Keyring::new("k2", K2).unwrap())), Err(missing));
    }

    #[test]
    fn plain_payloads_stay_byte_for_byte() {
        let (queue, id) = place();
        for text in
            ["{\"a\": 1.0 }", "no json", r#"{"$sealed":1}"#, r#"{"$sealed":{"v":2}}"#, r#"["\"$sealed\""]"#]
        {
            assert_eq!(unseal(text, &queue, &id, None).unwrap(), text);
        }
    }

    #[test]
    fn keys_are_checked_and_never_shown() {
        assert!(matches!(Keyring::new("k", "c2hvcnQ="), Err(SealError::Key(_))));
        assert!(matches!(Keyring::new("k", K1).unwrap().and("k", K2), Err(SealError::KeyTwice(_))));
        assert!(!format!("{:?}", Keyring::new("k", K1).unwrap()).contains("x5sP"));
    }
}
