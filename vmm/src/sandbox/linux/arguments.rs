//! The memory that the kernel shows as a process's arguments.

/// Does something with each argument of the process where it lies. With none where the kernel does not say where they lie.
///
/// Call it while the process has one thread, and when nothing refers to its arguments any more.
pub fn each_argument(what: &mut dyn FnMut(&mut [u8])) {
    let Some((start, end)) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| place(&text)) else {
        return;
    };
    // SAFETY: the kernel put the arguments there, one after the other, for this process to use as it likes. The process
    // has one thread, and Rust hands out copies only.
    let arguments = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end.saturating_sub(start)) };
    arguments.split_mut(|byte| *byte == 0).for_each(what);
}

/// First and last address, of what proc_pid_stat(5) says of a process: fields 48 and 49, where it may know.
fn place(stat: &str) -> Option<(usize, usize)> {
    // The second field is a name in parentheses, which may hold anything; the third follows.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(48 - 3).map(str::parse);
    let (start, end) = (fields.next()?.ok()?, fields.next()?.ok()?);
    (start > 0 && end > start).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_where_the_kernel_says() {
        let mut seen = Vec::new();
        // Looked at only: other tests run.
        each_argument(&mut |argument| seen.push(argument.to_vec()));
        let first = std::env::args().next().unwrap();
        assert_eq!(seen.first().map(Vec::as_slice), Some(first.as_bytes()));
        assert!(seen.len() >= std::env::args().count());
    }

    #[test]
    fn a_name_with_parentheses_and_fields_that_are_hidden_are_no_trouble() {
        let rest: Vec<String> = (3..=52).map(|field| (field * 100).to_string()).collect();
        assert_eq!(place(&format!("7 (a) b (c)) {}", rest.join(" "))), Some((4800, 4900)));
        let hidden: Vec<&str> = (3..=52).map(|_| "0").collect();
        assert_eq!(place(&format!("7 (a) {}", hidden.join(" "))), None);
        assert_eq!(place("7 (a) S 1"), None);
    }
}
