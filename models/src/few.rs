//! Frozen linear layers on a few rows, as decoding has them: bound by how fast weights are read, so each is read once, by
//! kernels of our own, and nothing else is done per layer.
//!
//! An output's value depends on its weights and its row alone: not on the threads, nor on the rows that share the batch.
//! Only where no gradient is wanted; everything else is left to the products that libtorch makes.

#![allow(unsafe_code)]

use std::borrow::Cow;

use tch::{Device, Kind, Tensor};

use crate::kernels::rows::{self, Matrix, Rows};
use crate::linear::{Linear, Lora, Pass, Weight};
use crate::shim;

/// Rows up to this many are a few. With more, the matrix products of libtorch are faster.
const MOST: usize = 64;

/// The same for bf16 on a processor that multiplies it by itself.
const MOST_NATIVE: usize = 16;

/// Numbers that are computed before they are put where they belong.
const ROOM: usize = 1024;

/// Weights a thread should have before a second one is worth waking.
const GRAIN: usize = 16384;

/// The answers of layers to the same few rows, or `None` where these kernels do not apply.
pub fn forward(linears: &[&Linear], x: &Tensor, pass: Pass) -> Option<Vec<Tensor>> {
    let input = Input::new(x, pass)?;
    let products = linears.iter().map(|linear| Product::of(linear, &input, pass)).collect::<Option<Vec<_>>>()?;
    Some(run(&products, &input))
}

/// `x weight^T` for a weight without a layer, or `None` where these kernels do not apply.
pub fn product(weight: &Weight, x: &Tensor, pass: Pass) -> Option<Tensor> {
    let input = Input::new(x, pass)?;
    let (outputs, weight) = matrix(weight, &input)?;
    run(&[Product { weight, outputs, bias: None, low: None, onto: None }], &input).pop()
}

/// `onto` plus a layer's answer, or `None` where these kernels do not apply.
pub fn added(linear: &Linear, x: &Tensor, onto: &Tensor, pass: Pass) -> Option<Tensor> {
    let input = Input::new(x, pass)?;
    run(&[Product::of(linear, &input, pass)?.onto(onto, &input)?], &input).pop()
}

/// `onto` plus `down` of `silu(gate) * up`, or `None` where these kernels do not apply.
pub fn gated([gate, up, down]: [&Linear; 3], x: &Tensor, onto: &Tensor, pass: Pass) -> Option<Tensor> {
    let input = Input::new(x, pass)?;
    let (gate, up) = (Product::of(gate, &input, pass)?, Product::of(up, &input, pass)?);
    let (count, width) = (input.rows.count(), gate.outputs);
    if up.outputs != width {
        return None;
    }
    let mut halves = [vec![0f32; count * width], vec![0f32; count * width]];
    let places = halves.each_mut().map(|half| Place::Wide(half.as_mut_ptr()));
    fill(&[gate, up], &places, &input);
    halves.iter_mut().flatten().for_each(|value| *value = input.round(*value));
    let [gate, up] = halves;
    let mut product = vec![0f32; count * width];
    shim::swiglu_of(&gate, &up, &mut product);
    product.iter_mut().for_each(|value| *value = input.round(*value));
    let middle = Input { rows: Rows::new(product.into(), width), kind: input.kind };
    run(&[Product::of(down, &middle, pass)?.onto(onto, &middle)?], &middle).pop()
}

/// A few rows.
struct Input<'a> {
    rows: Rows<'a>,
    kind: Kind,
}

/// One layer's work.
struct Product<'a> {
    weight: Matrix<'a>,
    outputs: usize,
    bias: Option<Cow<'a, [f32]>>,
    low: Option<Low<'a>>,
    /// `[rows, outputs]`: what the answer is added to.
    onto: Option<Cow<'a, [f32]>>,
}

/// An adapter's second half: `scale * low B^T`.
struct Low<'a> {
    b: Matrix<'a>,
    rows: Rows<'static>,
    scale: f32,
}

impl<'a> Input<'a> {
    fn new(x: &'a Tensor, pass: Pass) -> Option<Self> {
        let size = x.size();
        let suits = pass.fused && pass.training.is_none() && !shim::wants_gradient() && rows::fast();
        let kind = x.kind();
        let most = if kind == Kind::BFloat16 && rows::multiplies_bf16() { MOST_NATIVE } else { MOST };
        if !suits
            || size.len() != 2
            || size[0] < 1
            || size[0] > most as i64
            || size[1] == 0
            || x.device() != Device::Cpu
        {
            return None;
        }
        Some(Self { rows: Rows::new(numbers(x)?, size[1] as usize), kind })
    }

    /// What is left of a number in a tensor of this type.
    fn round(&self, value: f32) -> f32 {
        if self.kind == Kind::Float { value } else { rows::widen(rows::narrow(value)) }
    }
}

impl<'a> Product<'a> {
    fn of(linear: &'a Linear, input: &Input<'_>, pass: Pass) -> Option<Self> {
        let lora = linear.lora.as_ref().filter(|_| !pass.base_only);
        if linear.heard.is_some() || lora.is_some_and(|lora| lora.dora.is_some()) {
            return None;
        }
        let (outputs, weight) = matrix(&linear.weight, input)?;
        let bias = match &linear.bias {
            Some(bias) if bias.kind() == input.kind => Some(numbers(bias)?),
            Some(bias) => Some(numbers(&bias.to_kind(input.kind))?.into_owned().into()),
            None => None,
        };
        let low = match lora {
            Some(lora) => Some(Low::of(lora, input)?),
            None => None,
        };
        Some(Self { weight, outputs, bias, low, onto: None })
    }

    /// Added to `onto`, `[rows, outputs]`.
    fn onto(self, onto: &'a Tensor, input: &Input<'_>) -> Option<Self> {
        let fits = onto.kind() == input.kind && onto.numel() == input.rows.count() * self.outputs;
        Some(Self { onto: Some(numbers(onto).filter(|_| fits)?), ..self })
    }

    /// Outputs from `first` on into `out`, `[outputs, rows]`.
    fn span(&self, first: usize, input: &Input<'_>, out: &mut [f32]) {
        self.weight.times(true, first, &input.rows, out);
        let count = input.rows.count();
        if let Some(bias) = &self.bias {
            for (out, bias) in out.chunks_mut(count).zip(&bias[first..]) {
                out.iter_mut().for_each(|value| *value = input.round(*value) + bias);
            }
        }
        if let Some(low) = &self.low {
            let mut change = [0f32; ROOM];
            let change = &mut change[..out.len()];
            low.b.times(true, first, &low.rows, change);
            let add = |(value, change): (&mut f32, &mut f32)| *value = low.scale.mul_add(*change, input.round(*value));
            out.iter_mut().zip(change).for_each(add);
        }
        if let Some(onto) = &self.onto {
            for (output, out) in out.chunks_mut(count).enumerate() {
                let before = onto[first + output..].iter().step_by(self.outputs);
                out.iter_mut().zip(before).for_each(|(value, before)| *value = before + input.round(*value));
            }
        }
    }
}

impl<'a> Low<'a> {
    fn of(lora: &'a Lora, input: &Input<'_>) -> Option<Self> {
        let (a, b) = (f32_matrix(&lora.a)?, f32_matrix(&lora.b)?);
        let (rank, count) = (lora.a.size()[0] as usize, input.rows.count());
        let mut turned = vec![0f32; rank * count];
        a.times(true, 0, &input.rows, &mut turned);
        let low: Vec<f32> = (0..rank * count).map(|i| turned[i % rank * count + i / rank]).collect();
        Some(Self { b, rows: Rows::new(low.into(), rank), scale: lora.scale as f32 })
    }
}

/// Makes all products, as tensors.
fn run(products: &[Product<'_>], input: &Input<'_>) -> Vec<Tensor> {
    let (made, places): (Vec<Tensor>, Vec<Place>) =
        products.iter().map(|product| room(input.rows.count(), product.outputs, input.kind)).unzip();
    fill(products, &places, input);
    made
}

/// Makes all products, each into its place of `[rows, outputs]`, every thread a share of the outputs.
fn fill(products: &[Product<'_>], places: &[Place], input: &Input<'_>) {
    let count = input.rows.count();
    products.iter().for_each(|product| product.weight.prepare(&input.rows));
    let total = products.iter().map(|product| product.outputs).sum::<usize>();
    let span = ROOM / count;
    shim::parallel(total, (GRAIN / input.rows.columns()).max(1), &|first, last| {
        let mut numbers = [0f32; ROOM];
        let mut start = 0;
        for (product, place) in products.iter().zip(places) {
            let own = first.max(start) - start..last.min(start + product.outputs).max(start) - start;
            start += product.outputs;
            for at in own.clone().step_by(span) {
                let outputs = (own.end - at).min(span);
                match *place {
                    // A single row lies as it is made.
                    Place::Wide(out) if count == 1 => {
                        // SAFETY: the place has room for all outputs, and no other thread has these.
                        product.span(at, input, unsafe { std::slice::from_raw_parts_mut(out.add(at), outputs) });
                    }
                    place => {
                        let out = &mut numbers[..outputs * count];
                        product.span(at, input, out);
                        place.put_span(at, product.outputs, count, out);
                    }
                }
            }
        }
    });
}

/// Where numbers go, row-major, in the type of a tensor.
#[derive(Clone, Copy)]
pub enum Place {
    Wide(*mut f32),
    Narrow(*mut u16),
}

// SAFETY: threads write to places that do not overlap.
unsafe impl Sync for Place {}

/// A tensor `[rows, columns]` of f32 or bf16 to be filled.
pub fn room(rows: usize, columns: usize, kind: Kind) -> (Tensor, Place) {
    let tensor = Tensor::empty([rows as i64, columns as i64], (kind, Device::Cpu));
    let start = tensor.data_ptr();
    let place = if kind == Kind::Float { Place::Wide(start.cast()) } else { Place::Narrow(start.cast()) };
    (tensor, place)
}

impl Place {
    /// Writes a row of as many columns as there are values.
    pub fn put_row(self, row: usize, values: &[f32]) {
        values.iter().enumerate().for_each(|(column, value)| self.put(row * values.len() + column, *value));
    }

    /// Writes outputs from `first` on of rows of `columns`, given as `[outputs, rows]`.
    fn put_span(self, first: usize, columns: usize, count: usize, values: &[f32]) {
        for (output, values) in values.chunks(count).enumerate() {
            debug_assert!(first + output < columns);
            values.iter().enumerate().for_each(|(row, value)| self.put(row * columns + first + output, *value));
        }
    }

    fn put(self, at: usize, value: f32) {
        // SAFETY: the callers stay within the tensor, and no other thread writes this element.
        unsafe {
            match self {
                Self::Wide(start) => *start.add(at) = value,
                Self::Narrow(start) => *start.add(at) = rows::narrow(value),
            }
        }
    }
}

/// A weight that lies in memory in a type that there is a kernel for: f32 for f32 input alone, which is no better in bf16.
fn matrix<'a>(weight: &'a Weight, input: &Input<'_>) -> Option<(usize, Matrix<'a>)> {
    if weight.shape().1 != input.rows.columns() as i64 {
        return None;
    }
    let dense = match weight {
        Weight::Dense(dense) => dense,
        Weight::Blocks(blocks) => return Some((blocks.rows as usize, blocks.matrix())),
        Weight::Nf4(_) | Weight::Int8(_) => return None,
    };
    let (outputs, count) = (weight.shape().0 as usize, dense.numel());
    if !dense.is_contiguous() {
        return None;
    }
    // SAFETY: a contiguous tensor of this kind and size, borrowed as long as the matrix.
    let matrix = unsafe {
        match dense.kind() {
            Kind::Float if input.kind == Kind::Float => {
                Matrix::F32(std::slice::from_raw_parts(dense.data_ptr().cast(), count))
            }
            Kind::BFloat16 => Matrix::Bf16(std::slice::from_raw_parts(dense.data_ptr().cast(), count)),
            _ => return None,
        }
    };
    Some((outputs, matrix))
}

fn f32_matrix(tensor: &Tensor) -> Option<Matrix<'_>> {
    if tensor.kind() != Kind::Float || !tensor.is_contiguous() {
        return None;
    }
    // SAFETY: as above.
    Some(Matrix::F32(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }))
}

/// The elements of an f32 or bf16 tensor, row-major; borrowed where they lie so.
fn numbers(tensor: &Tensor) -> Option<Cow<'_, [f32]>> {
    if !tensor.is_contiguous() {
        return Some(numbers(&tensor.contiguous())?.into_owned().into());
    }
    let count = tensor.numel();
    // SAFETY: a contiguous tensor of this kind and size, borrowed as long as the slice.
    unsafe {
        match tensor.kind() {
            Kind::Float => Some(std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), count).into()),
            Kind::BFloat16 => {
                let bits = std::slice::from_raw_parts(tensor.data_ptr().cast::<u16>(), count);
                Some(bits.iter().map(|bits| rows::widen(*bits)).collect::<Vec<_>>().into())
            }
            _ => None,
        }
    }
}
