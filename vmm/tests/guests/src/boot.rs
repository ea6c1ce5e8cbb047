//! From the PVH entry point to Rust: 32-bit protected mode without paging (Xen, `docs/misc/pvh.pandoc`, "CPU state") to
//! 64-bit mode with the first 4 GiB mapped onto themselves.
//!
//! The tables are built by the assembler, not at run time: where KVM is a software backend an instruction costs close
//! to a microsecond. Pages are 2 MiB, because such a backend may not know pages of 1 GiB, and the GDT is loaded before
//! paging is on, because it reloads segments only through a table it can read at that time.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18                  /* name and descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_entry

    .section .text.boot, "ax"
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    lgdt gdt_pointer
    ljmp $0x08, $1f
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    movl $stack_top, %esp

    movl $bss_start, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    movl %cr4, %eax
    orl $0x20, %eax                 /* PAE */
    movl %eax, %cr4
    movl $page_map, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          /* EFER */
    rdmsr
    orl $0x100, %eax                /* LME */
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax          /* CD and NW off */
    orl $0x80000001, %eax           /* PG and PE on */
    movl %eax, %cr0
    ljmp $0x18, $2f

    .code64
2:  movl $stack_top, %esp
    xorl %ebp, %ebp
    movl %ebx, %edi
    call guest_start
3:  cli
    hlt
    jmp 3b

    /* One stub of 16 bytes a vector: the vector and an error code, then the common part. */
    .balign 16
    .global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 64
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    movq 72(%rsp), %rdi             /* vector */
    movq 80(%rsp), %rsi             /* error code */
    movq 88(%rsp), %rdx             /* rip */
    cld
    call interrupt_entry
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    .section .data.boot, "aw"
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        /* 0x08: 32-bit code */
    .quad 0x00cf93000000ffff        /* 0x10: data */
    .quad 0x00af9b000000ffff        /* 0x18: 64-bit code */
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    .balign 4096
page_map:
    .quad page_directories_pointers + 3
    .fill 511, 8, 0
page_directories_pointers:
    .quad page_directories + 0x0003
    .quad page_directories + 0x1003
    .quad page_directories + 0x2003
    .quad page_directories + 0x3003
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 1536                      /* present, writable, 2 MiB */
    .quad page * 0x200000 + 0x83
    .set page, page + 1
    .endr
    .rept 512                       /* from 3 GiB: device memory, uncached */
    .quad page * 0x200000 + 0x9b
    .set page, page + 1
    .endr

    .section .noinit, "aw", @nobits
    .balign 4096
    .skip 65536
stack_top:
    "#,
    options(att_syntax)
);
