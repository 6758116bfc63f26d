//! Compiles the C++ shim against the libtorch that torch-sys found, and lets the worker find that libtorch at run time.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    // torch-sys declares `links = "tch"`, so its `libtorch_lib` arrives under that name.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo:warning=torch-sys did not say where libtorch is; set LIBTORCH to a libtorch 2.13 folder");
        std::process::exit(1);
    };
    let lib = PathBuf::from(lib);
    let include = lib.join("../include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(3)
        .file("csrc/attend.cpp")
        .file("csrc/attend_rows.cpp")
        .file("csrc/kernels.cpp")
        .file("csrc/paged.cpp")
        .file("csrc/products.cpp")
        .file("csrc/products_widened.cpp")
        // Sums may be split over lanes; NaN and infinity keep their meaning, a NaN must reach the loss.
        // Vectors stay inside functions; how they would be passed between them does not matter.
        .flag_if_supported("-Wno-psabi")
        // gcc 12 says of its own vector headers what is not so.
        .flag_if_supported("-Wno-maybe-uninitialized")
        .flag_if_supported("-Wno-uninitialized")
        .flags(["-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"])
        .compile("pipe_kernels");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(2)
        // Without it at::parallel_for in the shim is silently serial.
        .flag("-fopenmp")
        .flag_if_supported("-Wno-unused-parameter")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("csrc/allocator.cpp")
        .file("csrc/cache.cpp")
        .file("csrc/functions.cpp")
        .compile("pipe_functions");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=pipe_kernels");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-arg=-fopenmp");
    // RUNPATH: found without LD_LIBRARY_PATH, and still overridable by it.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
