//! The floor: one byte on COM1 as soon as a guest can, then a reset through 0xCF9. For measuring how long a VMM takes to
//! its first guest instruction; nothing here may depend on what the machine has.

#![no_std]
#![no_main]

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

    .section .text.boot, "ax"
    .code32
    .global pvh_entry
pvh_entry:
    movw $0x3f8, %dx
    movb $'!', %al
    outb %al, %dx
    movw $0xcf9, %dx
    movb $6, %al
    outb %al, %dx
1:  cli
    hlt
    jmp 1b
    .code64

    .section .data.floor, "aw"      /* a loader may refuse a segment without bytes */
    .quad 0
    "#,
    options(att_syntax)
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
