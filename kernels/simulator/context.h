// Stacks that one thread of the host runs on in turns.
#pragma once

namespace simulator {

#if defined(__x86_64__) && defined(__ELF__) && !defined(CONVMAT_SIMULATOR_UCONTEXT)
typedef void* Context;
// Saves the registers that a call preserves on the stack, and the stack pointer in *from.
asm(R"(
    .text
    .type convmat_switch, @function
convmat_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size convmat_switch, .-convmat_switch
)");
extern "C" __attribute__((visibility("hidden"))) void convmat_switch(Context* from, Context* to);
inline void prepare(Context* context, char* stack, u64 bytes, void (*entry)()) {
    void** top = (void**)(stack + bytes) - 2;
    __builtin_memset(top - 6, 0, 8 * sizeof(void*));
    *top = (void*)entry;
    *context = top - 6;
}
#else
}  // namespace simulator
#include <ucontext.h>
namespace simulator {
typedef ucontext_t Context;
inline void convmat_switch(Context* from, Context* to) { swapcontext(from, to); }
inline void prepare(Context* context, char* stack, u64 bytes, void (*entry)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = bytes;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
}
#endif

}  // namespace simulator
