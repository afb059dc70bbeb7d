//! Embeds the kernel sources, so that the library carries them and needs no CUDA toolkit to build, and
//! makes Rust structs of the argument structs that they declare.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::{Display, Write as _};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs, process};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(gpu)");
    let feature = |name: &str| env::var_os(format!("CARGO_FEATURE_{name}")).is_some();
    if feature("CUDA") || feature("SIMULATOR") {
        println!("cargo::rustc-cfg=gpu");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");

    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let mut files = Vec::new();
    collect(&root.join("kernels"), &mut files);
    files.sort_by(|a, b| a.name.cmp(&b.name));
    // Files include each other by their plain names.
    if let Some(pair) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
        fail(pair[1].path.display(), format_args!("{} has this name, too", pair[0].path.display()));
    }
    let write = |name: &str, code: String| {
        fs::write(out.join(name), code).expect("OUT_DIR is writable");
    };
    write("sources.rs", sources(&files));
    write("structs.rs", structs(&files));
}

/// A file of `kernels/`.
struct File {
    path: PathBuf,
    name: String,
    text: String,
}

fn collect(folder: &Path, files: &mut Vec<File>) {
    for entry in fs::read_dir(folder).expect("kernels/ is part of the crate").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str()).expect("a plain file name");
        let text = fs::read_to_string(&path).expect("kernel sources are UTF-8");
        files.push(File { name: name.into(), text, path });
    }
}

/// Ends the build with an error.
fn fail(place: impl Display, message: impl Display) -> ! {
    println!("cargo::error={place}: {message}");
    process::exit(1)
}

/// Whether a file is a part of the simulator, which the kernels do not depend on.
fn of_simulator(file: &File) -> bool {
    file.path.parent().is_some_and(|folder| folder.ends_with("simulator"))
}

/// The table of the sources.
fn sources(files: &[File]) -> String {
    let (simulator, kernels): (Vec<&File>, Vec<&File>) =
        files.iter().partition(|file| of_simulator(file));
    let mut code = String::from("pub(crate) static SOURCES: &[Source] = &[\n");
    let mut line = |text: String| writeln!(code, "{text}").expect("strings take writes");
    let path = |file: &File| file.path.to_str().expect("a UTF-8 path").to_string();
    for file in kernels {
        // The file and all that it includes, whatever their order.
        let mut parts = in_order_of_includes(&[file], files);
        parts.retain(|part| !of_simulator(part));
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        let mut switches: Vec<&str> = parts.iter().flat_map(|part| switches(part)).collect();
        switches.sort_unstable();
        switches.dedup();
        let (name, path, hash) = (&file.name, path(file), hash(&parts));
        line(format!(
            "Source {{ name: {name:?}, text: include_str!({path:?}), hash: {hash:#018x}, \
             switches: &{switches:?} }},"
        ));
    }
    line("];".into());
    let cfg = "#[cfg(all(feature = \"simulator\", unix))]";
    line(format!("{cfg}\npub(crate) static SIMULATOR: &[(&str, &str)] = &["));
    for file in &simulator {
        line(format!("({:?}, include_str!({:?})),", file.name, path(file)));
    }
    line(format!("];\n{cfg}\npub(crate) const SIMULATOR_HASH: u64 = {:#018x};", hash(&simulator)));
    code
}

/// It only has to differ when a source differs, and is no protection against malice.
fn hash(files: &[&File]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for File { name, text, .. } in files {
        (name, text).hash(&mut hasher);
    }
    hasher.finish()
}

/// The names of the files that one includes.
fn includes(file: &File) -> impl Iterator<Item = &str> {
    file.text.lines().filter_map(|line| line.trim().strip_prefix("#include \"")?.strip_suffix('"'))
}

/// These files and all that they include, each after those that it includes.
fn in_order_of_includes<'a>(from: &[&'a File], files: &'a [File]) -> Vec<&'a File> {
    fn visit<'a>(file: &'a File, files: &'a [File], done: &mut Vec<&'a File>) {
        if done.iter().any(|other| other.name == file.name) {
            return;
        }
        for name in includes(file) {
            match files.iter().find(|other| other.name == name) {
                Some(other) => visit(other, files, done),
                None => {
                    fail(file.path.display(), format_args!("kernels/ has no {name} to include"))
                }
            }
        }
        done.push(file);
    }
    let mut done = Vec::new();
    from.iter().for_each(|file| visit(file, files, &mut done));
    done
}

/// The macros that the host may define for a file: `SWITCHES(ONE, ANOTHER)`, on a line or several.
fn switches(file: &File) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = String::new();
    let mut text = file.text.as_str();
    while let Some((before, after)) = text.split_once("\nSWITCHES(") {
        let Some((names, after)) = after.split_once(')') else {
            fail(file.path.display(), "SWITCHES( has no end")
        };
        found.extend(names.split(',').map(str::trim));
        rest.push_str(before);
        text = after;
    }
    rest.push_str(text);
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    for name in &found {
        if name.is_empty() || name.contains(word) || !rest.split(word).any(|word| word == *name) {
            fail(file.path.display(), format_args!("{name} is declared as a switch, but not used"));
        }
    }
    found
}

/// A struct that kernels and the host share, declared `HOST struct` in a kernel source:
///
/// ```cpp
/// HOST struct NAME {
///     i64 one, another[3];  // a comment
///     const ELEMENT* pointer;
///     OtherStruct nested;
/// };
/// ```
struct Struct {
    name: String,
    comment: Vec<String>,
    fields: Vec<Field>,
    bytes: usize,
    align: usize,
    /// What `alignas` says.
    aligned: bool,
}

struct Field {
    name: String,
    comment: Vec<String>,
    kind: Kind,
    /// The number of elements of an array.
    count: Option<usize>,
    offset: usize,
}

enum Kind {
    /// Named alike in Rust.
    Number(String),
    /// To a shared struct, if that is its name.
    Pointer(String),
    /// A number that each run of a program gives.
    PerRun,
    Struct(String),
}

const NUMBERS: &[(&str, usize)] =
    &[("i64", 8), ("u64", 8), ("f64", 8), ("i32", 4), ("u32", 4), ("f32", 4)];

/// Rust structs of all shared structs.
fn structs(files: &[File]) -> String {
    let mut all: BTreeMap<String, Struct> = BTreeMap::new();
    // What a struct contains is declared before it, or in a file that its own includes.
    for file in in_order_of_includes(&files.iter().collect::<Vec<_>>(), files) {
        for (first, of) in declarations(file) {
            let place = format!("{}:{}: struct {}", file.path.display(), first + 1, of.name);
            if all.contains_key(&of.name) {
                fail(place, "another shared struct has this name");
            }
            let of = lay_out(of, &all).unwrap_or_else(|message| fail(place, message));
            all.insert(of.name.clone(), of);
        }
    }
    all.values().map(|of| rust_struct(of, &all)).collect()
}

/// The shared structs of a file, and the lines on which they begin. They are not laid out yet.
fn declarations(file: &File) -> Vec<(usize, Struct)> {
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let first = at;
        at += 1;
        let Some(rest) = lines[first].strip_prefix("HOST ") else { continue };
        let place = |line: usize| format!("{}:{}", file.path.display(), line + 1);
        let (aligned, rest) = match rest.strip_prefix("struct alignas(8) ") {
            Some(rest) => (true, Some(rest)),
            None => (false, rest.strip_prefix("struct ")),
        };
        let Some(name) = rest.and_then(|rest| rest.strip_suffix(" {")) else {
            fail(place(first), "expected `HOST struct NAME {` and a line's end");
        };
        let comment = lines[..first].iter().rev().map_while(|line| line.strip_prefix("//"));
        let mut comment: Vec<String> = comment.map(|line| line.trim().into()).collect();
        comment.reverse();
        let mut fields = Vec::new();
        // Comments on lines of their own, which are about the next field.
        let mut above = Vec::new();
        loop {
            let Some(line) = lines.get(at) else { fail(place(first), "the struct does not end") };
            at += 1;
            if *line == "};" {
                break;
            }
            let (code, remark) = line.split_once("//").unwrap_or((line, ""));
            let remark = Some(remark.trim().to_string()).filter(|remark| !remark.is_empty());
            if code.trim().is_empty() {
                above.extend(remark);
                continue;
            }
            let mut comment = std::mem::take(&mut above);
            comment.extend(remark);
            match declaration(code.trim(), &comment) {
                Ok(declared) => fields.extend(declared),
                Err(message) => fail(place(at - 1), message),
            }
        }
        let name = name.to_string();
        found.push((first, Struct { name, comment, fields, bytes: 0, align: 0, aligned }));
    }
    found
}

/// The fields of `type name, name[count];` or `const type* name;`.
fn declaration(code: &str, comment: &[String]) -> Result<Vec<Field>, String> {
    let is_name = |name: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.chars().all(known) && name.starts_with(|c: char| c.is_ascii_alphabetic())
    };
    let unclear = || format!("`{code}`: expected `type name, name[count];` or `type* name;`");
    let rest = code.strip_suffix(';').ok_or_else(unclear)?;
    let rest = rest.strip_prefix("const ").unwrap_or(rest);
    let (kind, rest) = rest.split_once(' ').ok_or_else(unclear)?;
    let (kind, pointer) = match kind.strip_suffix('*') {
        Some(kind) => (kind, true),
        None => (kind, false),
    };
    if !is_name(kind) || pointer && rest.contains(',') {
        return Err(unclear());
    }
    let field = |declarator: &str| {
        let (name, count) = match declarator.trim().split_once('[') {
            None => (declarator.trim(), None),
            Some((name, count)) => {
                let count = count.strip_suffix(']').and_then(|count| count.parse().ok());
                (name, Some(count.ok_or_else(unclear)?))
            }
        };
        if !is_name(name) {
            return Err(unclear());
        }
        let kind = match NUMBERS.iter().any(|(number, _)| *number == kind) {
            _ if pointer => Kind::Pointer(kind.into()),
            _ if kind == "PerRun" => Kind::PerRun,
            true => Kind::Number(kind.into()),
            false => Kind::Struct(kind.into()),
        };
        Ok(Field { name: name.into(), comment: comment.to_vec(), kind, count, offset: 0 })
    };
    rest.split(',').map(field).collect()
}

/// Works out sizes and offsets. Padding is an error: the two languages share bytes, all of which count.
fn lay_out(mut of: Struct, known: &BTreeMap<String, Struct>) -> Result<Struct, String> {
    let (mut bytes, mut align) = (0, if of.aligned { 8 } else { 1 });
    for field in &mut of.fields {
        let (size, its_align) = match &field.kind {
            Kind::Pointer(_) | Kind::PerRun => (8, 8),
            Kind::Number(kind) => {
                let size = NUMBERS.iter().find(|(name, _)| name == kind).map_or(8, |found| found.1);
                (size, size)
            }
            Kind::Struct(kind) => match known.get(kind) {
                Some(of) => (of.bytes, of.align),
                None => {
                    let name = &field.name;
                    return Err(format!("{name}: {kind} is neither a number nor a `HOST struct`"));
                }
            },
        };
        if bytes % its_align != 0 {
            return Err(format!("there would be padding before {}", field.name));
        }
        field.offset = bytes;
        bytes += size * field.count.unwrap_or(1);
        align = align.max(its_align);
    }
    if bytes == 0 || bytes % align != 0 {
        return Err(format!("{bytes} bytes are no multiple of the alignment of {align}"));
    }
    if of.name.ends_with("Args") && align != 8 {
        return Err("arguments are aligned to 8 bytes".into());
    }
    Ok(Struct { bytes, align, ..of })
}

fn rust_struct(of: &Struct, all: &BTreeMap<String, Struct>) -> String {
    let Struct { name, bytes, .. } = of;
    let mut code = String::new();
    let mut line = |text: String| writeln!(code, "{text}").expect("strings take writes");
    // Brackets would be links.
    let doc = |lines: &[String]| lines.join("\n").replace('[', "\\[").replace(']', "\\]");
    let mut documented = |comment: &[String], text: String| {
        if !comment.is_empty() {
            line(format!("#[doc = {:?}]", doc(comment)));
        }
        line(text);
    };
    let align = if of.aligned { ", align(8)" } else { "" };
    documented(&of.comment, format!("#[repr(C{align})]"));
    documented(&[], "#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]".into());
    documented(&[], format!("pub(crate) struct {name} {{"));
    for field in &of.fields {
        let kind = match &field.kind {
            Kind::Number(kind) | Kind::Struct(kind) => kind,
            Kind::Pointer(_) => "crate::device::cuda::Pointer",
            Kind::PerRun => "crate::device::cuda::PerRun",
        };
        let kind = field.count.map_or(kind.into(), |count| format!("[{kind}; {count}]"));
        documented(&field.comment, format!("pub(crate) r#{}: {kind},", field.name));
    }
    line("}".into());
    line("const _: () = {".into());
    line(format!("assert!(size_of::<{name}>() == {bytes});"));
    for Field { name: field, offset, .. } in &of.fields {
        line(format!("assert!(std::mem::offset_of!({name}, r#{field}) == {offset});"));
    }
    line("};".into());
    if name.ends_with("Args") {
        let mut open = Vec::new();
        collect_open(of, 0, all, &mut open);
        let mut checked = Vec::new();
        collect_checks(of, all, &mut checked);
        let check: String = checked.into_iter().map(check).collect();
        line(format!("impl crate::device::cuda::Arguments for {name} {{"));
        line(format!("const OPEN: &'static [usize] = &{open:?};"));
        line(format!("const CHECK: &'static str = {check:?};"));
        line("}".into());
    }
    code
}

/// Where the pointers and the numbers of runs are in a struct that begins at `start`.
fn collect_open(of: &Struct, start: usize, all: &BTreeMap<String, Struct>, found: &mut Vec<usize>) {
    for field in &of.fields {
        for element in 0..field.count.unwrap_or(1) {
            let at = start + field.offset;
            match &field.kind {
                Kind::Number(_) => (),
                Kind::Pointer(_) | Kind::PerRun => found.push(at + 8 * element),
                Kind::Struct(kind) => {
                    let of = &all[kind];
                    collect_open(of, at + element * of.bytes, all, found);
                }
            }
        }
    }
}

/// A struct and those that it contains or points to, each once.
fn collect_checks<'a>(
    of: &'a Struct,
    all: &'a BTreeMap<String, Struct>,
    found: &mut Vec<&'a Struct>,
) {
    if found.iter().any(|other| other.name == of.name) {
        return;
    }
    found.push(of);
    for field in &of.fields {
        if let Kind::Struct(kind) | Kind::Pointer(kind) = &field.kind
            && let Some(of) = all.get(kind)
        {
            collect_checks(of, all, found);
        }
    }
}

/// C++ that compiles if the struct is laid out as here. There is no padding, so its size and those of its
/// fields, in their order, say it all; `__builtin_offsetof` is unknown to some versions of NVRTC.
fn check(of: &Struct) -> String {
    let name = &of.name;
    let ends = of.fields.iter().skip(1).map(|next| next.offset).chain([of.bytes]);
    let sizes = of.fields.iter().zip(ends).map(|(Field { name: field, offset, .. }, end)| {
        format!(" && sizeof({name}::{field}) == {}", end - offset)
    });
    format!(
        "static_assert(sizeof({name}) == {}{}, \"{name} is laid out differently on the host\");\n",
        of.bytes,
        sizes.collect::<String>()
    )
}
