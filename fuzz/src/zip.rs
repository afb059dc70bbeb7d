//! A writer of ZIP archives that lies where it is told to: a fuzzer does not guess checksums, and the `zip`
//! crate's writer makes no wrong ones.

use std::io::Write;

use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};

/// A file in an archive.
pub struct Member {
    pub name: String,
    pub content: Vec<u8>,
    /// So many zeros follow the content. The member is compressed if there are any.
    pub repeated: usize,
    /// What the archive says of the content's size, if not the truth.
    pub size: Option<u32>,
    /// What it says of the size that the content takes in the archive, if not the truth.
    pub packed_size: Option<u32>,
    pub wrong_checksum: bool,
}

/// The archive of these members, in the classic form with 32-bit sizes.
pub fn archive(members: &[Member]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for member in members {
        let mut content = member.content.clone();
        content.resize(content.len() + member.repeated, 0);
        let mut checksum = Crc::new();
        checksum.update(&content);
        let size = member.size.unwrap_or(content.len() as u32);
        let (method, packed) = match member.repeated {
            0 => (0u16, content),
            _ => (8, deflate(&content)),
        };
        let packed_size = member.packed_size.unwrap_or(packed.len() as u32);
        // Flags, method, time, date, checksum, sizes and lengths: the same in both places.
        let mut common = vec![0, 0];
        common.extend(method.to_le_bytes());
        common.extend([0, 0, 0x21, 0]);
        common.extend((checksum.sum() ^ u32::from(member.wrong_checksum)).to_le_bytes());
        common.extend(packed_size.to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend((member.name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        let start = file.len() as u32;
        file.extend(b"PK\x03\x04\x14\x00");
        file.extend(&common);
        file.extend(member.name.as_bytes());
        file.extend(packed);
        directory.extend(b"PK\x01\x02\x14\x00\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(member.name.as_bytes());
    }
    let start = file.len() as u32;
    let count = (members.len() as u16).to_le_bytes();
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count);
    file.extend(count);
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn deflate(content: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}
