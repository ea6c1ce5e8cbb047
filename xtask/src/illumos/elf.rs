//! The dynamic part of an ELF file: what it needs and imports.

use anyhow::{Context as _, bail};
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, SectionHeader as _, Sym as _};
use object::{Endianness, Object as _, ObjectSection as _};

/// What a dynamic executable asks of its system.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Binary {
    /// A 64-bit x86 executable, and marked as illumos' (OS/ABI Solaris).
    pub is_executable: bool,
    /// The dynamic linker that starts it.
    pub interpreter: String,
    /// The libraries it needs (NEEDED), in order.
    pub needed: Vec<String>,
    /// The names it imports, in order of name.
    pub imports: Vec<Import>,
}

/// One imported name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub name: String,
    pub version: Option<String>,
}

impl Binary {
    /// Reads an ELF file.
    ///
    /// # Errors
    /// When it is no 64-bit little-endian ELF file, or its tables are broken.
    pub fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        let file = ElfFile64::<Endianness>::parse(bytes).context("not a 64-bit ELF file")?;
        let header: &FileHeader64<Endianness> = file.elf_header();
        let endian = file.endian();
        if endian != Endianness::Little {
            bail!("a big-endian ELF file");
        }
        let kind = header.e_type(endian);
        let is_executable = header.e_machine(endian) == elf::EM_X86_64
            && matches!(kind, elf::ET_DYN | elf::ET_EXEC)
            && header.e_ident.os_abi == elf::ELFOSABI_SOLARIS;
        let interpreter = match file.section_by_name(".interp") {
            Some(section) => {
                let text = section.data().context("broken .interp")?;
                String::from_utf8_lossy(text.strip_suffix(b"\0").unwrap_or(text)).into_owned()
            }
            None => String::new(),
        };
        let sections = header.sections(endian, bytes).context("broken sections")?;
        let symbols = sections.symbols(endian, bytes, elf::SHT_DYNSYM).context("broken dynamic symbols")?;
        let versions = sections.versions(endian, bytes).context("broken symbol versions")?;
        let mut imports = Vec::new();
        for (index, symbol) in symbols.enumerate() {
            if symbol.st_shndx(endian) != elf::SHN_UNDEF || symbol.st_name(endian) == 0 {
                continue;
            }
            let name = symbol.name(endian, symbols.strings()).context("broken symbol name")?;
            let version = match &versions {
                Some(table) => table.version(table.version_index(endian, index)).context("broken symbol version")?,
                None => None,
            };
            imports.push(Import {
                name: String::from_utf8_lossy(name).into_owned(),
                version: version.map(|version| String::from_utf8_lossy(version.name()).into_owned()),
            });
        }
        imports.sort();
        let mut needed = Vec::new();
        for section in sections.iter() {
            let Some((entries, strings)) = section.dynamic(endian, bytes).context("broken dynamic section")? else {
                continue;
            };
            let strings = sections.strings(endian, bytes, strings).context("broken dynamic strings")?;
            for entry in entries.iter().filter(|entry| entry.tag32(endian) == Some(elf::DT_NEEDED)) {
                let library = entry.string(endian, strings).context("broken name of a library")?;
                needed.push(String::from_utf8_lossy(library).into_owned());
            }
        }
        Ok(Self { is_executable, interpreter, needed, imports })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_read_and_is_none_of_illumos() {
        let binary = Binary::read(&std::fs::read(std::env::current_exe().unwrap()).unwrap()).unwrap();
        assert!(!binary.is_executable, "marked as Linux'");
        assert!(binary.interpreter.starts_with("/lib64/ld-linux"), "{}", binary.interpreter);
        assert!(binary.needed.iter().any(|library| library == "libc.so.6"), "{:?}", binary.needed);
        let exit = binary.imports.iter().find(|import| import.name == "memcpy").expect("memcpy");
        assert!(exit.version.as_deref().is_some_and(|version| version.starts_with("GLIBC_")), "{exit:?}");
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(Binary::read(b"#!/bin/sh\n").is_err());
        assert!(Binary::read(&[]).is_err());
    }
}
