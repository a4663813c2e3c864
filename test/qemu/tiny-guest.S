/*
 * A guest of a few instructions instead of a BIOS: it writes into the pages that the test asks for, for
 * ever. It runs in real mode, from ROM and without a stack, so it writes nothing else; every accelerator can
 * run it.
 *
 * Page 9 has the mask: 64 bits, one for each of the pages 16 to 79. A round adds one to the first word of
 * each page whose bit is set.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
        .code16
        .text
        .globl  _start
_start: cli
        xorw    %ax, %ax
        movw    %ax, %es
round:  movw    $0x1000, %bx            /* the segment of page 16 */
        movw    $0x9000, %si
        movw    $4, %dx                 /* words of the mask */
word:   movw    %es:(%si), %ax
        movw    $16, %cx
bit:    shrw    $1, %ax
        jnc     next
        movw    %bx, %ds
        incl    (0)
next:   addw    $0x100, %bx
        loop    bit
        addw    $2, %si
        decw    %dx
        jnz     word
        jmp     round

        .org    0xfff0
        ljmp    $0xf000, $_start
        .org    0x10000
