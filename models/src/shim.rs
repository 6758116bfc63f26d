//! Safe doors to the C++ autograd functions in csrc/.
//!
//! A refused operation panics with libtorch's sentence, as tch's own operators do; the worker turns panics into a
//! `failed` event. Nothing here decides anything about models.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::int8::Int8;
use crate::linear::{Lora, Weight};
use crate::nf4::{Format, Nf4, Scales};

#[repr(C)]
struct PipeWeight {
    rows: i64,
    columns: i64,
    dense: *const C_tensor,
    packed: *const C_tensor,
    scale_codes: *const C_tensor,
    absmax: *const C_tensor,
    offset: f32,
    format: i32,
}

#[repr(C)]
struct PipeLora {
    a: *const C_tensor,
    b: *const C_tensor,
    scale: f64,
    dropout: f64,
    seed: u64,
}

#[repr(C)]
struct PipeLayer {
    weight: PipeWeight,
    bias: *const C_tensor,
    lora: PipeLora,
}

/// How attention is computed. A cap or a window of 0 is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub head_dim: i64,
    /// Tokens a query sees at most, itself included.
    pub window: i64,
    /// Factor of the scores.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)`.
    pub cap: f64,
    /// Share of attention weights dropped, by a mask drawn from `seed`.
    pub dropout: f64,
    pub seed: u64,
}

/// Where some rows' keys and values lie, and the new tokens that are stored there.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Memory of the cache: tensors of `blocks_each` blocks, `[blocks, layers, 2, kv_heads * head_dim * BLOCK]`.
    pub slabs: &'a [Tensor],
    pub blocks_each: usize,
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// The rows' blocks, end to end.
    pub blocks: &'a [i64],
    /// Of each new token: where its row's blocks begin among them, and how many tokens of its row it sees, itself included.
    pub starts: &'a [i64],
    pub seen: &'a [i64],
}

#[repr(C)]
struct PipePages {
    slabs: *const *const C_tensor,
    slab_count: i64,
    blocks_each: i64,
    layers: i64,
    kv_heads: i64,
    dim: i64,
    blocks: *const i64,
    block_count: i64,
    starts: *const i64,
    seen: *const i64,
    tokens: i64,
}

type Error = *mut c_char;

unsafe extern "C" {
    fn pipe_linears(
        x: *const C_tensor,
        layers: *const PipeLayer,
        count: i64,
        out: *mut *mut C_tensor,
        error: *mut Error,
    ) -> i32;
    fn pipe_dequantize(weight: *const PipeWeight, wide: i32, error: *mut Error) -> *mut C_tensor;
    fn pipe_products() -> i32;
    fn pipe_widens() -> i32;
    fn pipe_set_gradient(leaf: *const C_tensor, gradient: *const C_tensor);
    fn pipe_dropout(x: *const C_tensor, p: f64, seed: u64, error: *mut Error) -> *mut C_tensor;
    fn pipe_rms_norm(x: *const C_tensor, weight: *const C_tensor, eps: f64, error: *mut Error) -> *mut C_tensor;
    fn pipe_swiglu(gate: *const C_tensor, up: *const C_tensor, error: *mut Error) -> *mut C_tensor;
    fn pipe_swiglu_numbers(gate: *const f32, up: *const f32, out: *mut f32, count: i64);
    fn pipe_rotate(x: *const C_tensor, cos: *const C_tensor, sin: *const C_tensor, error: *mut Error) -> *mut C_tensor;
    fn pipe_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        lengths: *const i64,
        documents: i64,
        how: *const Attention,
        error: *mut Error,
    ) -> *mut C_tensor;
    fn pipe_cached_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        pages: *const PipePages,
        layer: i64,
        how: *const Attention,
        error: *mut Error,
    ) -> *mut C_tensor;
    fn pipe_head_loss(
        hidden: *const C_tensor,
        head: *const C_tensor,
        bias: *const C_tensor,
        targets: *const C_tensor,
        scale: f64,
        cap: f64,
        error: *mut Error,
    ) -> *mut C_tensor;
    fn pipe_checkpoint(x: *const C_tensor, closure: *mut c_void, error: *mut Error) -> *mut C_tensor;
    fn pipe_wants_gradient() -> i32;
    fn pipe_parallel(count: i64, grain: i64, work: unsafe extern "C" fn(*const c_void, i64, i64), with: *const c_void);
    fn pipe_free(message: *mut c_char);
}

/// Whether operations of this thread are recorded for a backward pass.
pub fn wants_gradient() -> bool {
    // SAFETY: reads a setting of this thread.
    unsafe { pipe_wants_gradient() != 0 }
}

/// Runs `work` on ranges that together are `0..count`, on as many of libtorch's threads as there are shares of `grain`.
pub fn parallel<F: Fn(usize, usize) + Sync>(count: usize, grain: usize, work: &F) {
    /// A panic ends the process here: it must not reach C++.
    unsafe extern "C" fn share<F: Fn(usize, usize)>(work: *const c_void, first: i64, last: i64) {
        // SAFETY: `parallel` lends the closure for the time of the call.
        let work = unsafe { &*work.cast::<F>() };
        work(first as usize, last as usize);
    }
    // SAFETY: the call returns when all ranges are done.
    unsafe { pipe_parallel(count as i64, grain as i64, share::<F>, std::ptr::from_ref(work).cast()) }
}

/// A frozen layer as [`linears`] takes it.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    pub weight: &'a Weight,
    pub bias: Option<&'a Tensor>,
    pub lora: Option<&'a Lora>,
    /// Turns dropout on.
    pub seed: Option<u64>,
}

/// `x W^T + bias + scale * dropout(x) A^T B^T` of each layer.
pub fn linears<const N: usize>(x: &Tensor, layers: [Layer<'_>; N]) -> [Tensor; N] {
    let raw = layers.map(|Layer { weight, bias, lora, seed }| PipeLayer {
        weight: raw_weight(weight),
        bias: bias.map_or(null(), Tensor::as_ptr),
        lora: PipeLora {
            a: lora.map_or(null(), |lora| lora.a.as_ptr()),
            b: lora.map_or(null(), |lora| lora.b.as_ptr()),
            scale: lora.map_or(0.0, |lora| lora.scale),
            dropout: lora.and(seed).and(lora).map_or(0.0, |lora| lora.dropout),
            seed: seed.unwrap_or(0),
        },
    });
    let mut out = [null_mut(); N];
    let mut message: Error = null_mut();
    // SAFETY: every pointer is valid for the call; C++ takes its own handles of what it keeps, and fills `out` or refuses.
    let done = unsafe { pipe_linears(x.as_ptr(), raw.as_ptr(), N as i64, out.as_mut_ptr(), &mut message) };
    if done == 0 {
        refuse(message);
    }
    // SAFETY: C++ made them with `new` and handed them over.
    out.map(|tensor| unsafe { Tensor::from_ptr(tensor) })
}

/// Whether products of bf16 tensors go to our own kernel, which this processor has the instructions for.
pub fn has_products() -> bool {
    // SAFETY: asks the processor, once.
    unsafe { pipe_products() != 0 }
}

/// `x y` by libtorch, in the type of `x`. Where the processor has no instructions for bf16, libtorch multiplies it number by
/// number, five times slower than f32; both are widened there.
pub fn matmul(x: &Tensor, y: &Tensor) -> Tensor {
    // SAFETY: asks the processor, once.
    if x.kind() == Kind::BFloat16 && unsafe { pipe_widens() } != 0 {
        return x.to_kind(Kind::Float).matmul(&y.to_kind(Kind::Float)).to_kind(Kind::BFloat16);
    }
    x.matmul(y)
}

/// Makes `gradient` that of a leaf, or leaves it without one.
pub fn set_gradient(leaf: &Tensor, gradient: Option<&Tensor>) {
    // SAFETY: both are live tensors; a leaf's gradient is read and written by the thread that owns the optimizer alone.
    unsafe { pipe_set_gradient(leaf.as_ptr(), gradient.map_or(null(), Tensor::as_ptr)) }
}

/// An NF4 weight as a dense tensor of f32 or bf16.
pub fn dequantize(weight: &Nf4, kind: Kind) -> Tensor {
    let wide = i32::from(kind != Kind::BFloat16);
    // SAFETY: as in `linear`.
    take(|error| unsafe { pipe_dequantize(&raw_nf4(weight), wide, error) }).to_kind(kind)
}

/// An 8-bit weight as a dense tensor of f32 or bf16.
pub fn dequantize_int8(weight: &Int8, kind: Kind) -> Tensor {
    let wide = i32::from(kind != Kind::BFloat16);
    // SAFETY: as in `linear`.
    take(|error| unsafe { pipe_dequantize(&raw_int8(weight), wide, error) }).to_kind(kind)
}

/// Zeroes each element with probability `p` and scales the others by `1 / (1 - p)`; the mask depends on `seed` and the
/// element's place alone.
pub fn dropout(x: &Tensor, p: f64, seed: u64) -> Tensor {
    // SAFETY: as in `linear`.
    take(|error| unsafe { pipe_dropout(x.as_ptr(), p, seed, error) })
}

/// RMS norm over the last dimension with a frozen weight.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    // SAFETY: as in `linear`.
    take(|error| unsafe { pipe_rms_norm(x.as_ptr(), weight.as_ptr(), eps, error) })
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
    // SAFETY: as in `linear`.
    take(|error| unsafe { pipe_swiglu(gate.as_ptr(), up.as_ptr(), error) })
}

/// `silu(gate) * up` of as many numbers.
pub fn swiglu_of(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && up.len() == out.len());
    // SAFETY: reads and writes as many numbers as there are.
    unsafe { pipe_swiglu_numbers(gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len() as i64) }
}

/// Rotary positions on `[tokens, heads * dim]` with `[tokens, dim / 2]` cosines and sines.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    // SAFETY: as in `linear`.
    take(|error| unsafe { pipe_rotate(x.as_ptr(), cos.as_ptr(), sin.as_ptr(), error) })
}

/// Causal attention within documents.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, lengths: &[i64], how: &Attention) -> Tensor {
    // SAFETY: as in `linear`; the lengths are copied during the call.
    take(|error| unsafe {
        let (documents, places) = (lengths.len() as i64, lengths.as_ptr());
        pipe_attention(q.as_ptr(), k.as_ptr(), v.as_ptr(), places, documents, how, error)
    })
}

/// Stores new tokens' keys and values, `[tokens, kv_heads * head_dim]`, in one layer of the cache. With `q`, `[tokens, heads *
/// head_dim]`, each attends over what its row holds up to itself; without, the answer is empty.
pub fn cached_attention(
    q: Option<&Tensor>,
    k: &Tensor,
    v: &Tensor,
    pages: &Pages<'_>,
    layer: usize,
    how: &Attention,
) -> Tensor {
    assert_eq!(pages.starts.len(), pages.seen.len());
    let slabs: Vec<*const C_tensor> = pages.slabs.iter().map(Tensor::as_ptr).collect();
    let raw = PipePages {
        slabs: slabs.as_ptr(),
        slab_count: slabs.len() as i64,
        blocks_each: pages.blocks_each as i64,
        layers: pages.layers as i64,
        kv_heads: pages.kv_heads as i64,
        dim: pages.head_dim as i64,
        blocks: pages.blocks.as_ptr(),
        block_count: pages.blocks.len() as i64,
        starts: pages.starts.as_ptr(),
        seen: pages.seen.as_ptr(),
        tokens: pages.starts.len() as i64,
    };
    let q = q.map_or(null(), Tensor::as_ptr);
    // SAFETY: as in `linear`; every number in `pages` is checked against the slabs before anything is read or written.
    take(|error| unsafe { pipe_cached_attention(q, k.as_ptr(), v.as_ptr(), &raw, layer as i64, how, error) })
}

/// Cross-entropy of each row, `[rows]` f32: `hidden` `[rows, hidden]`, a frozen `head` `[vocabulary, hidden]`, `targets`
/// `[rows]` i64. Logits are multiplied by `scale`, biased and capped (0 for no cap). The gradient to `hidden` is made on
/// the way, so no more than a few hundred rows of logits ever exist.
pub fn head_loss(
    hidden: &Tensor,
    head: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    scale: f64,
    cap: f64,
) -> Tensor {
    let bias = bias.map_or(null(), Tensor::as_ptr);
    // SAFETY: as in `linear`.
    take(|error| unsafe { pipe_head_loss(hidden.as_ptr(), head.as_ptr(), bias, targets.as_ptr(), scale, cap, error) })
}

/// Runs `part` without keeping its activations; backward runs it again.
///
/// # Safety
/// Everything `part` borrows must live, unmoved, until the returned tensor's graph has run backward or was dropped.
pub unsafe fn checkpoint<'a>(x: &Tensor, part: impl Fn(&Tensor) -> Tensor + 'a) -> Tensor {
    let part: Box<dyn Fn(&Tensor) -> Tensor + 'a> = Box::new(part);
    let closure = Box::into_raw(Box::new(part)).cast::<c_void>();
    // SAFETY: C++ owns `closure` from here on and gives it back to `pipe_checkpoint_drop` once.
    take(|error| unsafe { pipe_checkpoint(x.as_ptr(), closure, error) })
}

type Part = Box<dyn Fn(&Tensor) -> Tensor>;

/// # Safety
/// `closure` comes from [`checkpoint`]; `x` is a live tensor.
#[unsafe(no_mangle)]
unsafe extern "C" fn pipe_checkpoint_run(closure: *mut c_void, x: *const C_tensor) -> *mut C_tensor {
    // SAFETY: the contract above; a panic must not cross into C++, which turns null into an exception of its own.
    let answer = catch_unwind(AssertUnwindSafe(|| unsafe {
        let part = &*closure.cast::<Part>();
        let answer = part(&Tensor::clone_from_ptr(x.cast_mut()));
        let mut answer = std::mem::ManuallyDrop::new(answer);
        answer.as_mut_ptr()
    }));
    answer.unwrap_or(null_mut())
}

/// # Safety
/// `closure` comes from [`checkpoint`] and is not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn pipe_checkpoint_drop(closure: *mut c_void) {
    // SAFETY: the contract above.
    drop(unsafe { Box::from_raw(closure.cast::<Part>()) });
}

fn raw_weight(weight: &Weight) -> PipeWeight {
    match weight {
        Weight::Nf4(weight) => raw_nf4(weight),
        Weight::Dense(weight) => PipeWeight {
            rows: weight.size()[0],
            columns: weight.size()[1],
            dense: weight.as_ptr(),
            packed: null(),
            scale_codes: null(),
            absmax: null(),
            offset: 0.0,
            format: 0,
        },
        Weight::Int8(weight) => raw_int8(weight),
        Weight::Blocks(_) => unreachable!("blocks are multiplied elsewhere"),
    }
}

fn raw_int8(weight: &Int8) -> PipeWeight {
    PipeWeight {
        rows: weight.rows,
        columns: weight.columns,
        dense: null(),
        packed: weight.codes.as_ptr(),
        scale_codes: null(),
        absmax: weight.factors.as_ptr(),
        offset: 0.0,
        format: 2,
    }
}

fn raw_nf4(weight: &Nf4) -> PipeWeight {
    let (scale_codes, absmax, offset) = match &weight.scales {
        Scales::Plain(absmax) => (null(), absmax.as_ptr(), 0.0),
        Scales::Double { codes, absmax, offset } => (codes.as_ptr(), absmax.as_ptr(), *offset),
    };
    let (rows, columns) = (weight.rows, weight.columns);
    let format = i32::from(weight.format == Format::Fp4);
    PipeWeight { rows, columns, dense: null(), packed: weight.packed.as_ptr(), scale_codes, absmax, offset, format }
}

/// Takes ownership of a returned tensor, or panics with the C++ side's sentence.
fn take(call: impl FnOnce(*mut Error) -> *mut C_tensor) -> Tensor {
    let mut error: Error = null_mut();
    let answer = call(&mut error);
    if answer.is_null() {
        refuse(error);
    }
    // SAFETY: C++ made it with `new` and handed it over.
    unsafe { Tensor::from_ptr(answer) }
}

/// Panics with the C++ side's sentence.
fn refuse(error: Error) -> ! {
    // SAFETY: a refusal comes with a malloc'ed, terminated message, freed once.
    let message = unsafe {
        let message = CStr::from_ptr(error).to_string_lossy().into_owned();
        pipe_free(error);
        message
    };
    panic!("{}", crate::error::first_line(&message));
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use tch::{Kind, Tensor};

    use super::Attention;
    use crate::linear::{Linear, Lora, Pass, Weight};
    use crate::nf4::{Format, Nf4};
    use crate::{attention, random};

    unsafe extern "C" {
        fn pipe_product_by(
            instructions: i32,
            blocks: i32,
            left: *const u16,
            right: *const u16,
            turned: i32,
            rows: i64,
            columns: i64,
            depth: i64,
            out: *mut f32,
        ) -> i32;
    }

    fn numbers(seed: u64, count: usize) -> Vec<bf16> {
        (0..count as u64).map(|i| bf16::from_f64(random::unit(seed, i) * 2.0 - 1.0)).collect()
    }

    #[test]
    fn products_equal_plain_sums_by_every_instruction() {
        for (rows, columns, depth) in
            [(32, 32, 32), (64, 96, 64), (32, 40, 96), (96, 33, 4096), (160, 5, 416), (128, 400, 4512)]
        {
            let (left, right) = (numbers(1, rows * depth), numbers(2, depth * columns));
            let ways = [(0, false), (0, true), (1, false), (1, true)];
            let mut narrow = Vec::new();
            for (instructions, (blocks, turned)) in (1..=4).flat_map(|which| ways.map(|way| (which, way))) {
                let mut out = vec![0f32; rows * columns];
                // SAFETY: every array has the size that the call names.
                let there = unsafe {
                    let (left, right) = (left.as_ptr().cast(), right.as_ptr().cast());
                    let [r, c, d] = [rows, columns, depth].map(|n| n as i64);
                    pipe_product_by(instructions, blocks, left, right, turned.into(), r, c, d, out.as_mut_ptr())
                };
                if there == 0 {
                    continue;
                }
                // Wide multiply-adds, the second, give the bits of narrow ones, the first.
                match instructions {
                    1 => narrow.push(out.clone()),
                    2 => assert_eq!(narrow[blocks as usize * 2 + usize::from(turned)], out),
                    _ => {}
                }
                for (place, found) in out.iter().enumerate() {
                    let (row, column) = (place / columns, place % columns);
                    let right = |k: usize| right[if turned { column * depth + k } else { k * columns + column }];
                    let sum: f64 = (0..depth).map(|k| left[row * depth + k].to_f64() * right(k).to_f64()).sum();
                    assert!((sum - f64::from(*found)).abs() < 3e-6 * depth as f64, "{place}: {found} for {sum}");
                }
            }
        }
    }

    /// Where these are the first calls, and not made at once beforehand, some of them give twelve bits.
    #[test]
    fn functions_give_all_their_bits_to_threads_that_call_them_at_once() {
        let functions = [Tensor::tanh, Tensor::cos, Tensor::sin, Tensor::exp, Tensor::log, Tensor::sqrt, Tensor::erf];
        let (threads, x) = (4, leaf(1, 1, 2000, Kind::Float).abs() + 0.01);
        let start = std::sync::Barrier::new(threads);
        let values: Vec<f32> = x.squeeze_dim(0).try_into().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let x = Tensor::from_slice(&values);
                    start.wait();
                    for (i, function) in functions.iter().enumerate() {
                        let (found, exact) = (function(&x), function(&x.to_kind(Kind::Double)));
                        let off = ((found.to_kind(Kind::Double) - &exact) / exact).abs().max().double_value(&[]);
                        assert!(off < 1e-6, "function {i}: off by {off}");
                    }
                });
            }
        });
    }

    fn leaf(seed: u64, rows: i64, columns: i64, kind: Kind) -> Tensor {
        let values: Vec<f32> = numbers(seed, (rows * columns) as usize).into_iter().map(bf16::to_f32).collect();
        Tensor::from_slice(&values).reshape([rows, columns]).to_kind(kind)
    }

    fn assert_near(found: &[Tensor], expected: &[Tensor], what: &str) {
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert_eq!(found.size(), expected.size(), "{what} {i}");
            let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
            let off = ((&found - &expected).norm() / expected.norm()).double_value(&[]);
            assert!(off < 2e-2, "{what}, tensor {i}: off by {off}");
        }
    }

    /// The answer and the gradients to x, A and B.
    fn adapted(weight: Weight, [rows, rank]: [i64; 2], dropout: f64, fused: bool) -> [Tensor; 4] {
        let (outputs, inputs) = weight.shape();
        let x = leaf(1, rows, inputs, Kind::BFloat16).set_requires_grad(true);
        // As it lies after a decomposition: columns one after another.
        let a = leaf(2, inputs, rank, Kind::Float).tr().set_requires_grad(true);
        let b = leaf(3, outputs, rank, Kind::Float).set_requires_grad(true);
        let lora = Lora { a: a.shallow_clone(), b: b.shallow_clone(), scale: 1.5, dropout, dora: None, start: None };
        let bias = Some(leaf(4, 1, outputs, Kind::Float).squeeze_dim(0));
        let linear = Linear { name: "layer".into(), weight, bias, lora: Some(lora), heard: None };
        let y = linear.forward(&x, Pass { training: Some(7), fused, ..Pass::INFERENCE });
        (y.to_kind(Kind::Float) * leaf(5, rows, outputs, Kind::Float)).sum(Kind::Float).backward();
        [y.detach(), x.grad(), a.grad(), b.grad()]
    }

    #[test]
    fn adapted_layers_and_their_gradients_equal_the_plain_path_in_bf16() {
        // Ranks that fill a panel, that do not, and more than one; depths beyond what is packed at once; rows that do not fit.
        for (rows, inputs, outputs, rank) in [(64, 96, 64, 32), (32, 64, 2112, 8), (64, 2112, 96, 40), (33, 64, 64, 8)]
        {
            let dense = || Weight::Dense(leaf(6, outputs, inputs, Kind::BFloat16));
            let values: Vec<f32> = numbers(6, (outputs * inputs) as usize).into_iter().map(bf16::to_f32).collect();
            let nf4 = || Weight::Nf4(Nf4::quantize(Format::Nf4, &values, outputs as usize, inputs as usize, true));
            for dropout in [0.0, 0.25] {
                let sizes = [rows, rank];
                let what = format!("{rows} x {inputs} x {outputs}, rank {rank}, dropout {dropout}");
                assert_near(&adapted(dense(), sizes, dropout, true), &adapted(dense(), sizes, dropout, false), &what);
                assert_near(&adapted(nf4(), sizes, dropout, true), &adapted(nf4(), sizes, dropout, false), &what);
            }
        }
    }

    /// The answers of three layers to the same input, and the gradients to it and to their adapters.
    fn adapted_together(kind: Kind, dropout: f64, fused: bool) -> Vec<Tensor> {
        let (rows, inputs) = (64, 96);
        let x = leaf(1, rows, inputs, kind).set_requires_grad(true);
        let values: Vec<f32> = numbers(6, 64 * inputs as usize).into_iter().map(bf16::to_f32).collect();
        let weights = [
            Weight::Nf4(Nf4::quantize(Format::Nf4, &values, 64, inputs as usize, true)),
            Weight::Dense(leaf(7, 160, inputs, kind)),
            Weight::Dense(leaf(8, 32, inputs, kind)),
        ];
        // One without an adapter, and ranks that fill a panel and that do not.
        let mut rank = [Some(40), None, Some(8)].into_iter().zip(10..);
        let linears = weights.map(|weight| {
            let (rank, seed) = rank.next().unwrap();
            let outputs = weight.shape().0;
            let lora = rank.map(|rank| Lora {
                a: leaf(seed, rank, inputs, Kind::Float).set_requires_grad(true),
                b: leaf(seed + 10, outputs, rank, Kind::Float).set_requires_grad(true),
                scale: 1.5,
                dropout,
                dora: None,
                start: None,
            });
            Linear { name: format!("layer {seed}"), weight, bias: None, lora, heard: None }
        });
        let pass = Pass { training: Some(7), fused, ..Pass::INFERENCE };
        let answers = Linear::forward_all(linears.each_ref(), &x, pass);
        let weighed =
            answers.iter().map(|y| (y.to_kind(Kind::Float) * leaf(5, rows, y.size()[1], Kind::Float)).sum(Kind::Float));
        Tensor::stack(&weighed.collect::<Vec<_>>(), 0).sum(Kind::Float).backward();
        let matrices = linears.iter().filter_map(|linear| linear.lora.as_ref()).flat_map(|lora| [&lora.a, &lora.b]);
        let gradients = std::iter::once(&x).chain(matrices).map(Tensor::grad);
        answers.iter().map(Tensor::detach).chain(gradients).collect()
    }

    #[test]
    fn layers_of_one_input_equal_the_plain_path() {
        for dropout in [0.0, 0.25] {
            let [fused, plain] = [true, false].map(|fused| adapted_together(Kind::BFloat16, dropout, fused));
            assert_near(&fused, &plain, &format!("bf16, dropout {dropout}"));
            let [fused, plain] = [true, false].map(|fused| adapted_together(Kind::Float, dropout, fused));
            for (i, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
                let off = ((fused - plain).norm() / plain.norm()).double_value(&[]);
                assert!(off < 1e-5, "f32, dropout {dropout}, tensor {i}: off by {off}");
            }
        }
    }

    /// Each row of a product with ones on the diagonal is a row or a column of the weight itself.
    #[test]
    fn four_bit_weights_are_the_same_numbers_within_a_product() {
        for (format, double_quant, inputs, outputs) in
            [(Format::Nf4, true, 96, 320), (Format::Fp4, false, 160, 64), (Format::Nf4, false, 2112, 32)]
        {
            let values: Vec<f32> = numbers(6, (outputs * inputs) as usize).into_iter().map(bf16::to_f32).collect();
            let quantised = || Nf4::quantize(format, &values, outputs as usize, inputs as usize, double_quant);
            let weight = quantised().dequantize(Kind::BFloat16);
            let linear =
                Linear { name: "layer".into(), weight: Weight::Nf4(quantised()), bias: None, lora: None, heard: None };
            let ones = Tensor::eye(inputs, (Kind::BFloat16, tch::Device::Cpu)).set_requires_grad(true);
            let y = linear.forward(&ones, Pass { training: Some(7), fused: true, ..Pass::INFERENCE });
            assert_eq!(y, weight.tr(), "{format:?}");
            // Row i of the gradient takes row i of the weight.
            let taken = Tensor::eye(inputs.max(outputs), (Kind::Float, tch::Device::Cpu));
            let taken = taken.narrow(0, 0, inputs).narrow(1, 0, outputs);
            (y.to_kind(Kind::Float) * taken).sum(Kind::Float).backward();
            let rows = inputs.min(outputs);
            assert_eq!(ones.grad().narrow(0, 0, rows), weight.narrow(0, 0, rows), "{format:?}, gradient");
        }
    }

    /// Attention's answer and the gradients to q, k and v.
    fn attended(lengths: &[i64], how: &Attention, groups: i64, fused: bool, broken: Option<i64>) -> [Tensor; 4] {
        let (tokens, dim) = (lengths.iter().sum(), how.head_dim);
        let [q, k, v] = [(1, 2 * groups), (2, 2), (3, 2)].map(|(seed, heads)| {
            let x = leaf(seed, tokens, heads * dim, Kind::BFloat16);
            broken.into_iter().for_each(|row| drop(x.get(row).fill_(f64::NAN)));
            x.set_requires_grad(true)
        });
        let out = attention::packed(&q, &k, &v, lengths, how, Pass { fused, ..Pass::INFERENCE });
        (out.to_kind(Kind::Float) * leaf(4, tokens, 2 * groups * dim, Kind::Float)).sum(Kind::Float).backward();
        [out.detach(), q.grad(), k.grad(), v.grad()]
    }

    #[test]
    fn attention_and_its_gradients_equal_the_plain_path_in_bf16() {
        // Documents below a block of rows, beyond several, and so long that heads that share keys go to different threads; heads
        // that our own kernel knows (a multiple of 32), and one that it does not; a cap.
        let cases: [(&[i64], i64, i64, f64); 4] =
            [(&[5, 40, 67], 32, 2, 0.0), (&[300, 12], 64, 3, 0.0), (&[33, 64], 48, 1, 0.0), (&[50, 70], 32, 2, 5.0)];
        for (lengths, head_dim, groups, cap) in cases {
            for window in [0, 9, 70] {
                let how = Attention { head_dim, window, scale: 0.3, cap, dropout: 0.0, seed: 0 };
                let [fused, plain] = [true, false].map(|fused| attended(lengths, &how, groups, fused, None));
                assert_near(&fused, &plain, &format!("{lengths:?}, {head_dim} wide, window {window}"));
            }
        }
    }

    #[test]
    fn a_number_that_is_none_stays_within_its_document() {
        let how = Attention { head_dim: 32, window: 0, scale: 0.3, cap: 0.0, dropout: 0.0, seed: 0 };
        let [whole, broken] = [None, Some(20)].map(|row| attended(&[17, 30, 40], &how, 2, true, row));
        for (i, (whole, broken)) in whole.iter().zip(&broken).enumerate() {
            for (start, length) in [(0, 17), (47, 40)] {
                assert_eq!(whole.narrow(0, start, length), broken.narrow(0, start, length), "tensor {i} from {start}");
            }
            assert!(broken.narrow(0, 20, 27).isnan().any().int64_value(&[]) == 1, "tensor {i}");
        }
    }

    #[test]
    fn head_and_loss_equal_the_plain_path_in_bf16() {
        // A vocabulary of whole panels, and one that is not.
        for (vocabulary, cap) in [(2112, 0.0), (2085, 0.0), (2085, 5.0)] {
            let ids = Tensor::from_slice(&(0..70).map(|i| i * 30 % vocabulary).collect::<Vec<i64>>());
            let head = leaf(2, vocabulary, 64, Kind::BFloat16);
            let bias = leaf(3, 1, vocabulary, Kind::Float).squeeze_dim(0);
            let run = |fused: bool| {
                let hidden = leaf(1, 70, 64, Kind::BFloat16).set_requires_grad(true);
                let losses = if fused {
                    super::head_loss(&hidden, &head, Some(&bias), &ids, 0.5, cap)
                } else {
                    let logits = hidden.to_kind(Kind::Float).matmul(&head.to_kind(Kind::Float).tr()) * 0.5 + &bias;
                    let logits = if cap > 0.0 { (logits / cap).tanh() * cap } else { logits };
                    -logits.log_softmax(-1, Kind::Float).gather(1, &ids.unsqueeze(1), false).squeeze_dim(1)
                };
                losses.sum(Kind::Float).backward();
                [losses.detach(), hidden.grad()]
            };
            assert_near(&run(true), &run(false), &format!("{vocabulary} tokens, cap {cap}"));
        }
    }
}
