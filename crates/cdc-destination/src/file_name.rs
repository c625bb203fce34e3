//! The name of a file that an attempt writes.

use cdc_manifest::{ConsumerId, part_name};
use pg_rows::encoding::Encoding;

use crate::HiddenFile;

/// The name of an export's file, and the dataset and consumer that determine its key in a bucket.
#[derive(Clone, Debug)]
pub struct FileName {
    pub dataset: String,
    /// `None` for an ad-hoc export.
    pub consumer: Option<ConsumerId>,
    /// The name that clients see.
    pub name: String,
    pub encoding: Encoding,
}

impl FileName {
    /// Returns the name of a part that is about to be written. The first part has the name of an only file, because
    /// more parts may not follow.
    pub fn of_part(&self, part: u32) -> String {
        if part == 1 { self.name.clone() } else { part_name(&self.name, part) }
    }

    /// Returns the key of an attempt's object: `{dataset}/{consumer}/{stem}_{token}{extension}`.
    ///
    /// The token is the first 8 digits of the attempt's lease token, so that two attempts never share a key. The
    /// folders allow an operator to grant a consumer access to its own objects only. The first part has the key of an
    /// only file, because more parts may not follow.
    pub fn key(&self, hidden: &HiddenFile) -> String {
        let FileName { dataset, consumer, name, encoding } = self;
        let extension = encoding.extension();
        let stem = name.strip_suffix(&extension).unwrap_or(name);
        // A consumer's id never begins with an underscore.
        let consumer = consumer.as_ref().map_or("_ad_hoc", ConsumerId::as_str);
        let token = hidden.token.simple().to_string();
        let key = format!("{dataset}/{consumer}/{stem}_{}{extension}", &token[..8]);
        if hidden.part == 1 { key } else { part_name(&key, hidden.part) }
    }
}
