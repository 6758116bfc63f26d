//! Golden values for tests, from tests/fixtures at the repository's root.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use half::bf16;
use safetensors::{Dtype, SafeTensors};

pub struct Fixture {
    bytes: Vec<u8>,
}

impl Fixture {
    pub fn path(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
    }

    pub fn open(name: &str) -> Self {
        Self { bytes: std::fs::read(Self::path(name)).unwrap() }
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.read(name).1
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.read(name).2
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        let (dtype, _, bytes) = self.read(name);
        match dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn read(&self, name: &str) -> (Dtype, Vec<usize>, Vec<u8>) {
        let all = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = all.tensor(name).unwrap();
        (view.dtype(), view.shape().to_vec(), view.data().to_vec())
    }
}
