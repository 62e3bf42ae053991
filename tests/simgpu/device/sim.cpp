// sim.cpp - runtime of the SIMT emulator: fibers, barriers, warp collectives, cp.async,
// device memory with guard pages, and (for kernels built with -fsanitize=thread and linked
// WITHOUT libtsan) a barrier-aware race / out-of-bounds / uninitialised-read detector.
#include "sim.h"
#include "sim_api.h"
#include <array>
#include <atomic>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN 1
#else
#define ASAN 0
#endif

// ------------------------------------------------------------------ context switch
extern "C" void sim_swap(void **save, void *to);
#if defined(__x86_64__)
asm(R"(.text
.globl sim_swap
.type sim_swap,@function
sim_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sim_swap,.-sim_swap
)");
static void *init_stack(void *top, void (*entry)()) {
  auto a = reinterpret_cast<uintptr_t>(top) & ~uintptr_t(63);
  auto *s = reinterpret_cast<void **>(a - 64);     // return address slot, 16-aligned
  *s = reinterpret_cast<void *>(entry);
  for (int i = 1; i <= 6; ++i) s[-i] = nullptr;
  return s - 6;
}
#elif defined(__aarch64__)
asm(R"(.text
.globl sim_swap
.type sim_swap,%function
sim_swap:
  sub sp,sp,#176
  stp x19,x20,[sp,#0]
  stp x21,x22,[sp,#16]
  stp x23,x24,[sp,#32]
  stp x25,x26,[sp,#48]
  stp x27,x28,[sp,#64]
  stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]
  stp d10,d11,[sp,#112]
  stp d12,d13,[sp,#128]
  stp d14,d15,[sp,#144]
  mov x9,sp
  str x9,[x0]
  mov sp,x1
  ldp x19,x20,[sp,#0]
  ldp x21,x22,[sp,#16]
  ldp x23,x24,[sp,#32]
  ldp x25,x26,[sp,#48]
  ldp x27,x28,[sp,#64]
  ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]
  ldp d10,d11,[sp,#112]
  ldp d12,d13,[sp,#128]
  ldp d14,d15,[sp,#144]
  add sp,sp,#176
  ret
.size sim_swap,.-sim_swap
)");
static void *init_stack(void *top, void (*entry)()) {   // untested here (no arm machine)
  auto a = reinterpret_cast<uintptr_t>(top) & ~uintptr_t(63);
  auto *s = reinterpret_cast<void **>(a - 192);
  std::memset(s, 0, 176);
  s[11] = reinterpret_cast<void *>(entry);
  return s;
}
#endif

namespace sim {
thread_local Tls tls;

// ------------------------------------------------------------------ options and errors
struct Opt { const char *name; std::atomic<long> v; };
static Opt opts[] = {{"order", 0}, {"seed", 1}, {"cpasync", 0}, {"threads", 1}, {"race", 1},
                     {"stack", ASAN ? 262144 : 65536}, {"blockorder", 0}, {"globalrace", 1}, {"wgasync", 1}};
enum { O_ORDER, O_SEED, O_CPASYNC, O_THREADS, O_RACE, O_STACK, O_BLOCKORDER, O_GLOBALRACE, O_WGASYNC };
static inline long opt(int i) { return opts[i].v.load(std::memory_order_relaxed); }
long option(const char *n) { for (auto &o : opts) if (!strcmp(o.name, n)) return o.v; return 0; }

static std::mutex err_mu;
static std::string err_text;
static int err_count;
static std::map<std::string, int> err_seen;     // one report per (kind, code address)

// ------------------------------------------------------------------ device memory
static unsigned char *dev_base, *dev_next;
constexpr size_t DEV_RESERVE = size_t(1) << 38, PAGE = 4096;
struct DevAlloc { unsigned char *p; size_t n, map; bool live; };
static std::vector<DevAlloc> dev_allocs;
static std::vector<uint32_t> dev_page;          // page -> alloc index + 1
static std::mutex dev_mu;
static bool in_dev(const void *p) { return dev_base && p >= dev_base && p < dev_base + DEV_RESERVE; }
static const DevAlloc *dev_find(const void *p) {
  size_t pg = (static_cast<const unsigned char *>(p) - dev_base) / PAGE;
  if (pg >= dev_page.size() || !dev_page[pg]) return nullptr;
  return &dev_allocs[dev_page[pg] - 1];
}

// ------------------------------------------------------------------ shadow memory
using VC = std::array<uint32_t, 32>;
struct Cell {                                    // one byte of shared memory
  uint32_t wclk = 0, rclk = 0, rvc = 0; uint16_t wep = 0, rep = 0;
  uint8_t ww = 0, wl = 0, rw = 0, rl = 0; bool init = false, async = false; uint8_t aread = 0;
};
constexpr size_t GB = 2;
struct GCell {                                   // two bytes of device memory
  uint32_t launch = 0, wblk = 0, rblk = 0, wclk = 0, rclk = 0; uint8_t ww = 0, wl = 0, rw = 0, rl = 0;
  bool hasw = false, hasr = false, atomic = false, multir = false; uint16_t wep = 0, rep = 0; uint8_t bytes = 0;
};
static std::vector<std::vector<GCell>> gshadow;  // per allocation, made on first use
static uint32_t launch_id;

// ------------------------------------------------------------------ block, warp, fiber
struct Pending { uint32_t mask, arrived; int op; void *args[32]; };
struct Warp { uint32_t alive, members; Pending pend[8]; uint16_t ep, cep; VC vc; };   // cep: any collective; ep: __syncwarp or barrier
struct Cp { uint32_t dst; const void *src; uint32_t n, sn; int group; const void *pc; };
struct Fiber {
  void *sp; uint3 tid; int idx; uint32_t lane; Warp *w; bool done; int red; int waiting; int barid;
  std::vector<Cp> cp; int group, wgroup; unsigned char *stk; void *fake;
};
struct Mbar { uint32_t off, count, pending; int64_t tx; uint32_t phase; VC vc; };
struct Tma { uint32_t dst; TensorMap m; uint32_t bar; int c0, c1; VC vc; const void *pc; };
struct Wg { float *d[128]; int m, n; uint64_t da, db; int scale; const void *pc; int group; };
struct WGroup { int arrived = 0; float *d[128]; int group = 0; std::vector<Wg> q; uint64_t da = 0, db = 0; };
struct Bar { int arrived; int expected; std::vector<int> who; int acc; };
struct Static { const void *tag; unsigned char *p; uint32_t n; };
struct Worker {
  std::vector<Fiber> f; std::vector<Warp> w; unsigned char *stacks = nullptr; size_t stk = 0, nstk = 0;
  uint64_t ready[16]; int n = 0, live = 0; void *main_sp = nullptr; bool abort = false;
  unsigned char *arena = nullptr; size_t arena_n = 0; uint32_t dyn = 0, dyn_off = 0, stat_used = 0;
  std::vector<Static> stat; Bar bar[16]; uint64_t rng = 1; Thunk thunk; void **params; int nparams = 0; const uint32_t *param_sizes = nullptr;
  std::vector<Cell> cell; std::vector<VC> rvcs; uint32_t blk = 0; const char *kname = ""; sigjmp_buf jb; bool in = false;
  std::vector<Mbar> mbar; std::vector<Tma> tma; std::vector<WGroup> wg; uint64_t switches = 0; const void *mstk = nullptr; size_t mstkn = 0; void *mfake = nullptr;
  ~Worker() { if (stacks) munmap(stacks, stk * nstk); if (arena) { 
#if ASAN
    ASAN_UNPOISON_MEMORY_REGION(arena, arena_n);
#endif
    munmap(arena, arena_n); } }
};
static thread_local Worker *W;
constexpr uint32_t STAT = 64 * 1024;              // room for static __shared__ arrays
constexpr uint32_t RZ = 64;

static std::string where(const void *pc) {
  Dl_info i; char b[256];
  if (pc && dladdr(pc, &i) && i.dli_fbase) {
    const char *s = strrchr(i.dli_fname, '/');
    snprintf(b, sizeof b, "%s+0x%zx", s ? s + 1 : i.dli_fname, size_t((char *)pc - (char *)i.dli_fbase) - 1);
  } else snprintf(b, sizeof b, "%p", pc);
  return b;
}
static void report(const char *kind, const void *pc, const std::string &msg) {
  std::lock_guard<std::mutex> g(err_mu);
  ++err_count;
  if (err_seen[std::string(kind) + where(pc)]++ || err_seen.size() > 20) return;
  char b[512]; auto &t = tls;
  snprintf(b, sizeof b, "[sim] %s in %s, block (%u,%u,%u) thread (%u,%u,%u) at %s: %s\n", kind, W ? W->kname : "?", t.bid.x,
           t.bid.y, t.bid.z, t.tid.x, t.tid.y, t.tid.z, pc ? where(pc).c_str() : "-", msg.c_str());
  err_text += b;
}

static inline void switch_to(Worker *w, Fiber *to) {
  Fiber *me = tls.cur;
  tls.cur = to; tls.tid = to->tid; tls.lane = to->lane; ++w->switches;
#if ASAN
  __sanitizer_start_switch_fiber(me->done ? nullptr : &me->fake, to->stk, w->stk);
#endif
  sim_swap(&me->sp, to->sp);
#if ASAN
  __sanitizer_finish_switch_fiber(tls.cur->fake, nullptr, nullptr);
#endif
}
[[noreturn]] static void to_main(Worker *w) {
  Fiber *me = tls.cur; void *dead;
  (void)me;
#if ASAN
  __sanitizer_start_switch_fiber(nullptr, w->mstk, w->mstkn);
#endif
  sim_swap(&dead, w->main_sp);
  __builtin_unreachable();
}
[[noreturn]] static void bail(const char *kind, const std::string &m, const void *pc = nullptr) {
  report(kind, pc, m); W->abort = true; to_main(W);
}
void trap(const char *m) { bail("error", m); }

static inline void set_ready(Worker *w, int i) { w->ready[i >> 6] |= 1ull << (i & 63); }
static inline void clr_ready(Worker *w, int i) { w->ready[i >> 6] &= ~(1ull << (i & 63)); }
static int scan_up(Worker *w, int from) {
  int nw = (w->n + 63) >> 6, s = from >> 6;
  if (from < w->n) {
    uint64_t m = w->ready[s] & (~0ull << (from & 63));
    for (int i = s;;) { if (m) return i * 64 + __builtin_ctzll(m); if (++i >= nw) break; m = w->ready[i]; }
  }
  for (int i = 0; i < nw; ++i) if (w->ready[i]) return i * 64 + __builtin_ctzll(w->ready[i]);
  return -1;
}
static int scan_down(Worker *w, int from) {
  for (int i = from; i >= 0; --i) if (w->ready[i >> 6] >> (i & 63) & 1) return i;
  for (int i = ((w->n + 63) >> 6) - 1; i >= 0; --i) if (w->ready[i]) return i * 64 + 63 - __builtin_clzll(w->ready[i]);
  return -1;
}
static inline uint64_t rnd(Worker *w) { w->rng ^= w->rng << 13; w->rng ^= w->rng >> 7; w->rng ^= w->rng << 17; return w->rng; }
static int pick(Worker *w, int cur) {
  switch (opt(O_ORDER)) {
    case 1: return scan_down(w, cur - 1);
    case 2: return scan_up(w, int(rnd(w) % unsigned(w->n)));
    case 3: return scan_up(w, 0);               // lowest thread runs as far ahead as it can
    case 4: return scan_down(w, w->n - 1);      // highest first
    default: return scan_up(w, cur + 1);
  }
}
static void tma_do(Worker *w, const Tma &t);
static void yield_blocked(Worker *w) {
  Fiber *me = tls.cur; int nx = pick(w, me->idx);
  while (nx < 0 && !w->tma.empty()) {               // nobody can run: let one copy in flight land
    size_t i = rnd(w) % w->tma.size(); Tma t = w->tma[i]; w->tma.erase(w->tma.begin() + long(i)); tma_do(w, t); nx = pick(w, me->idx);
  }
  if (nx < 0) {
    int nb[17] = {0}; std::string s;
    for (int i = 0; i < w->n; ++i) if (!w->f[i].done) ++nb[w->f[i].waiting == 1 ? w->f[i].barid : 16];
    for (int i = 0; i < 16; ++i) if (nb[i]) s += std::to_string(nb[i]) + " threads at barrier " + std::to_string(i) + " (expects " + std::to_string(w->bar[i].expected) + "); ";
    if (nb[16]) s += std::to_string(nb[16]) + " threads at a warp-level operation; ";
    bail("deadlock", s + std::to_string(w->n - w->live) + " threads have exited");
  }
  if (nx != me->idx) switch_to(w, &w->f[nx]);
}

// ------------------------------------------------------------------ barriers
static void join_release(Worker *w, const std::vector<int> &who) {
  VC m{}; uint32_t seen = 0;
  for (int i : who) { int wi = i >> 5; if (seen >> wi & 1) continue; seen |= 1u << wi; for (int k = 0; k < 32; ++k) m[k] = std::max(m[k], w->w[wi].vc[k]); }
  for (int wi = 0; wi < 32; ++wi) if (seen >> wi & 1) { w->w[wi].vc = m; ++w->w[wi].vc[wi]; ++w->w[wi].ep; }
}
static void release(Worker *w, Bar &b) {
  join_release(w, b.who);
  for (int i : b.who) { w->f[i].red = b.acc; w->f[i].waiting = 0; set_ready(w, i); }
  b.who.clear(); b.arrived = 0;
}
static int barrier(unsigned id, int nthreads, int op, int pred) {
  Worker *w = W; Fiber *me = tls.cur; Bar &b = w->bar[id];
  if (!b.arrived) { b.acc = op == 1 ? 1 : 0; b.expected = nthreads; }
  if (op == 0) b.acc += pred; else if (op == 1) b.acc &= pred; else if (op == 2) b.acc |= pred;
  ++b.arrived; b.who.push_back(me->idx);
  int want = nthreads < 0 ? w->live : nthreads;
  if (b.arrived == want) { release(w, b); if (opt(O_ORDER) >= 2) { int nx = pick(w, me->idx); if (nx != me->idx) switch_to(w, &w->f[nx]); } }
  else { me->waiting = 1; me->barid = id; clr_ready(w, me->idx); yield_blocked(w); }
  return me->red;
}
void block_barrier(unsigned id, int n) { barrier(id, n, 0, 0); }
int block_barrier_red(int op, int pred) { return barrier(0, -1, op, pred); }

void warp_collective(uint32_t mask, int op, void *arg, CollFn fn, void *ctx) {
  Worker *w = W; Fiber *me = tls.cur; Warp *wp = me->w; uint32_t bit = 1u << me->lane;
  if (!(mask & bit)) bail("error", "calling lane is not in the member mask");
  if (mask == 0xffffffffu) mask = wp->members;     // last, partial warp
  Pending *p = nullptr;
  for (auto &q : wp->pend) if (q.arrived && (q.mask & mask)) { p = &q; break; }
  if (!p) for (auto &q : wp->pend) if (!q.arrived) { p = &q; p->mask = mask; p->op = op; break; }
  if (p->mask != mask) bail("warp divergence", "lanes name different member masks");
  if (p->op != op) bail("warp divergence", "lanes of one warp reached different warp-level operations");
  p->args[me->lane] = arg; p->arrived |= bit;
  if (p->arrived == mask) {
    if (fn) fn(p->args, mask, ctx);
    if (mask == wp->members) ++wp->cep;              // enough for write-after-read: the value was read before it was exchanged
    if (op == OP_SYNCWARP) ++wp->ep;                // only __syncwarp makes writes visible
    p->arrived = 0;
    int base = int(wp - w->w.data()) * 32;
    for (uint32_t m = mask & ~bit; m; m &= m - 1) { int i = base + __builtin_ctz(m); w->f[i].waiting = 0; set_ready(w, i); }
  } else {
    if (mask & ~wp->alive) bail("error", "a lane named in the mask has exited");
    me->waiting = 2; clr_ready(w, me->idx); yield_blocked(w);
  }
}

// ------------------------------------------------------------------ race / memory checks
static inline bool ordered(Worker *w, int me_w, int me_l, int ow, int ol, uint32_t clk, uint16_t ep, bool war = false) {
  const Warp &m = w->w[me_w];
  if (ow == me_w) return ol == me_l || clk < m.vc[me_w] || (war ? ep != m.cep : ep < m.ep);
  return m.vc[ow] >= clk;
}
static std::string tname(int w, int l) { return "thread " + std::to_string(w * 32 + l); }
[[maybe_unused]] static void smem_access(uint32_t off, uint32_t n, bool write, const void *pc, bool async_done = false, bool record = true) {
  Worker *w = W; if (!opt(O_RACE)) return;
  Fiber *f = tls.cur; int mw = f->idx >> 5, ml = f->lane; Warp &wp = *f->w;
  for (uint32_t i = off; i < off + n; ++i) {
    Cell &c = w->cell[i];
    if (write && c.aread) { report("write to shared memory still being read by wgmma", pc, "shared+" + std::to_string(i)); return; }
    if (c.async && !async_done) { report(write ? "write to cp.async target in flight" : "read of cp.async data before wait", pc, "shared+" + std::to_string(i)); return; }
    if (c.wclk && !ordered(w, mw, ml, c.ww, c.wl, c.wclk, c.wep)) {
      report(write ? "shared-memory race (write after write)" : "shared-memory race (read after write)", pc, "shared+" + std::to_string(i) + ", written by " + tname(c.ww, c.wl) + " with no barrier between"); return; }
    if (write) {
      if (c.rvc) { VC &v = w->rvcs[c.rvc]; for (int k = 0; k < 32; ++k) if (v[k] && k != mw && wp.vc[k] < v[k]) { report("shared-memory race (write after read)", pc, "shared+" + std::to_string(i) + ", read by warp " + std::to_string(k)); return; } }
      else if (c.rclk && !ordered(w, mw, ml, c.rw, c.rl, c.rclk, c.rep, true)) { report("shared-memory race (write after read)", pc, "shared+" + std::to_string(i) + ", read by " + tname(c.rw, c.rl)); return; }
      c.wclk = wp.vc[mw]; c.ww = mw; c.wl = ml; c.wep = wp.ep; c.rclk = 0; c.rvc = 0; c.init = true;
    } else {
      if (!c.init) { report("read of uninitialised shared memory", pc, "shared+" + std::to_string(i)); return; }
      if (!record) continue;                       // asynchronous readers are tracked by aread instead
      if (c.rvc) w->rvcs[c.rvc][mw] = wp.vc[mw];
      else if (!c.rclk || ordered(w, mw, ml, c.rw, c.rl, c.rclk, c.rep) || c.rw == mw) { c.rclk = wp.vc[mw]; c.rw = mw; c.rl = (c.rclk && c.rw == mw && c.rl != ml && c.rep == wp.cep) ? 255 : ml; c.rep = wp.cep; }
      else { c.rvc = w->rvcs.size(); VC v{}; v[c.rw] = c.rclk; v[mw] = wp.vc[mw]; w->rvcs.push_back(v); }
    }
  }
}
[[maybe_unused]] static void gmem_access(const void *p, uint32_t n, bool write, bool atomic, const void *pc) {
  const DevAlloc *a = dev_find(p);
  auto *q = static_cast<const unsigned char *>(p);
  if (!a || q < a->p || q + n > a->p + a->n || !a->live) {
    char b[160];
    if (!a) snprintf(b, sizeof b, "%u-byte %s at %p, in no allocation", n, write ? "write" : "read", p);
    else if (!a->live) snprintf(b, sizeof b, "%u-byte %s at %p, in a freed allocation of %zu bytes", n, write ? "write" : "read", p, a->n);
    else snprintf(b, sizeof b, "%u-byte %s %td bytes %s an allocation of %zu bytes", n, write ? "write" : "read", q < a->p ? a->p - q : q - (a->p + a->n), q < a->p ? "before" : "after", a->n);
    bail("out-of-bounds device memory", b, pc);
  }
  if (!opt(O_GLOBALRACE) || !opt(O_RACE)) return;
  size_t ai = a - dev_allocs.data();
  if (gshadow.size() <= ai) gshadow.resize(dev_allocs.size());
  auto &sh = gshadow[ai]; if (sh.empty()) sh.resize(a->n / GB + 1);
  Worker *w = W; Fiber *f = tls.cur; int mw = f->idx >> 5, ml = f->lane; Warp &wp = *f->w;
  size_t o = q - a->p;
  for (size_t i = o / GB; i <= (o + n - 1) / GB; ++i) {
    GCell &c = sh[i]; size_t lo = std::max(o, i * GB), hi = std::min(o + n, i * GB + GB);
    uint8_t bm = uint8_t(((1u << (hi - i * GB)) - 1) & ~((1u << (lo - i * GB)) - 1));
    if (c.launch != launch_id) { c = GCell{}; c.launch = launch_id; }
    if (!(c.bytes & bm)) { c.bytes |= bm; if (c.hasw || c.hasr) continue; }   // neighbours in one word: not a race
    bool bad = false; const char *k = "";
    if (c.hasw && !(atomic && c.atomic)) {
      bad = c.wblk != w->blk || !ordered(w, mw, ml, c.ww, c.wl, c.wclk, c.wep); k = write ? "write after write" : "read after write";
    }
    if (!bad && write && c.hasr && !(atomic && c.atomic)) {
      bad = c.multir || c.rblk != w->blk || !ordered(w, mw, ml, c.rw, c.rl, c.rclk, c.rep, true); k = "write after read";
      if (!c.multir && c.rblk == w->blk && c.rw == mw && c.rl == ml) bad = false;
    }
    if (bad) { report("device-memory race", pc, std::string(k) + ", byte " + std::to_string(i * GB) + " of an allocation of " + std::to_string(a->n) + " bytes, other access by block " + std::to_string(write && c.hasr && !c.hasw ? c.rblk : c.wblk)); return; }
    if (write) { c.hasw = true; c.atomic = atomic; c.wblk = w->blk; c.wclk = wp.vc[mw]; c.ww = mw; c.wl = ml; c.wep = wp.ep; }
    else { if (c.hasr && (c.rblk != w->blk || c.rw != mw || c.rl != ml)) c.multir = c.rblk != w->blk || c.rclk == wp.vc[mw]; c.hasr = true; c.rblk = w->blk; c.rclk = wp.vc[mw]; c.rw = mw; c.rl = ml; c.rep = wp.cep; }
  }
}
void gmem_check(const void *p, uint32_t n, bool write, const void *pc) {
#ifdef SIM_HOOKS
  if (in_dev(p)) gmem_access(p, n, write, false, pc);
  else bail("out-of-bounds device memory", "address is not device memory", pc);
#else
  (void)p; (void)n; (void)write; (void)pc;
#endif
}
void atomic_note(const void *p, uint32_t n, const void *pc) {
#ifdef SIM_HOOKS
  if (in_dev(p)) gmem_access(p, n, true, true, pc);
#else
  (void)p; (void)n; (void)pc;
#endif
}

// ------------------------------------------------------------------ shared memory
unsigned char *dyn_smem() { return W->arena + W->dyn_off; }
void *static_smem(const void *tag, size_t bytes, size_t align) {
  Worker *w = W;
  for (auto &s : w->stat) if (s.tag == tag) return s.p;
  uint32_t o = (w->stat_used + RZ + align - 1) / align * align;
  if (o + bytes + RZ > SMEM_BASE + STAT) bail("error", "static shared memory exceeds 64 KB");
  w->stat_used = o + bytes; w->stat.push_back({tag, w->arena + o, uint32_t(bytes)});
#if ASAN
  ASAN_UNPOISON_MEMORY_REGION(w->arena + o, bytes);
#endif
#if !ASAN
  std::memset(w->arena + o - RZ, 0xcb, RZ); std::memset(w->arena + o + bytes, 0xcb, RZ);
#endif
  std::memset(w->arena + o, 0xff, bytes);
  return w->arena + o;
}
uint32_t smem_offset(const void *p) {
  Worker *w = W; auto *q = static_cast<const unsigned char *>(p);
  if (q < w->arena || q > w->arena + w->arena_n) bail("error", "__cvta_generic_to_shared of a pointer that is not shared memory");
  return uint32_t(q - w->arena);
}
static bool smem_valid(Worker *w, uint32_t o, uint32_t n) {
  if (o >= w->dyn_off) return o + n <= w->dyn_off + w->dyn;
  return o + n <= w->stat_used && o >= SMEM_BASE;   // red zones between arrays are seen by ASan / hooks only
}
static unsigned char *smem_ptr2(uint32_t o, uint32_t n, uint32_t align, bool write, const void *pc, bool record);
unsigned char *smem_ptr(uint32_t o, uint32_t n, uint32_t align, bool write, const void *pc) { return smem_ptr2(o, n, align, write, pc, true); }
static unsigned char *smem_ptr2(uint32_t o, uint32_t n, uint32_t align, bool write, const void *pc, [[maybe_unused]] bool record) {
  Worker *w = W;
  if (o % align) bail("misaligned shared address", std::to_string(o) + " is not a multiple of " + std::to_string(align), pc);
  if (!smem_valid(w, o, n)) bail("out-of-bounds shared memory", std::to_string(n) + "-byte " + (write ? "write" : "read") + " at dynamic offset " + std::to_string(int(o) - int(w->dyn_off)) + " of " + std::to_string(w->dyn), pc);
#ifdef SIM_HOOKS
  smem_access(o, n, write, pc, false, record);
#endif
  return w->arena + o;
}

// ------------------------------------------------------------------ cp.async: eager, lazy or random completion
static void cp_do(Worker *w, const Cp &c) {
#ifdef SIM_HOOKS
  for (uint32_t i = c.dst; i < c.dst + c.n; ++i) w->cell[i].async = false;
  smem_access(c.dst, c.n, true, c.pc, true);
#endif
  unsigned char *d = w->arena + c.dst;
  if (c.sn) std::memcpy(d, c.src, c.sn);
  if (c.sn < c.n) std::memset(d + c.sn, 0, c.n - c.sn);
}
void cp_async(uint32_t dst, const void *src, uint32_t n, uint32_t sn, const void *pc) {
  Worker *w = W; Fiber *f = tls.cur;
  smem_ptr(dst, n, n, true, pc);
  if (reinterpret_cast<uintptr_t>(src) % n) bail("misaligned global address", "cp.async source", pc);
  if (sn) gmem_check(src, sn, false, pc);
#if ASAN
  if (sn) { volatile unsigned char x = *static_cast<const unsigned char *>(src) ^ static_cast<const unsigned char *>(src)[sn - 1]; (void)x; }
#endif
  Cp c{dst, src, n, sn, f->group, pc};
  long mode = opt(O_CPASYNC);
  if (mode == 0 || (mode == 2 && rnd(w) & 1)) { 
    unsigned char *d = w->arena + dst;
    if (sn) std::memcpy(d, src, sn);
    if (sn < n) std::memset(d + sn, 0, n - sn);
  }
#ifdef SIM_HOOKS
  if (opt(O_RACE)) for (uint32_t i = dst; i < dst + n; ++i) w->cell[i].async = true;
  f->cp.push_back(c);
#else
  if (mode) f->cp.push_back(c);
#endif
}
void cp_async_commit() { ++tls.cur->group; }
void cp_async_wait(int pending) {
  Worker *w = W; Fiber *f = tls.cur; size_t k = 0;
  for (auto &c : f->cp) if (c.group < f->group - pending) cp_do(w, c); else f->cp[k++] = c;
  f->cp.resize(k);
}

// ------------------------------------------------------------------ mma m16n8k16
__attribute__((target_clones("arch=haswell", "default")))
void mma16816_bf16_exec(void *const *args, uint32_t, void *) {
  float A[16][16], B[16][8], C[16][8];
  for (int l = 0; l < 32; ++l) {
    auto *x = static_cast<MmaArg *>(args[l]); int g = l >> 2, t = (l & 3) * 2;
    for (int i = 0; i < 4; ++i) { int r = g + (i & 1) * 8, k = t + (i >> 1) * 8; A[r][k] = bf2f(uint16_t(x->a[i])); A[r][k + 1] = bf2f(uint16_t(x->a[i] >> 16)); }
    for (int i = 0; i < 2; ++i) { int k = t + i * 8; B[k][g] = bf2f(uint16_t(x->b[i])); B[k + 1][g] = bf2f(uint16_t(x->b[i] >> 16)); }
    for (int i = 0; i < 4; ++i) C[g + (i >> 1) * 8][t + (i & 1)] = x->d[i];
  }
  for (int i = 0; i < 16; ++i) for (int k = 0; k < 16; ++k) { float a = A[i][k]; for (int j = 0; j < 8; ++j) C[i][j] += a * B[k][j]; }
  for (int l = 0; l < 32; ++l) {
    auto *x = static_cast<MmaArg *>(args[l]); int g = l >> 2, t = (l & 3) * 2;
    for (int i = 0; i < 4; ++i) x->d[i] = C[g + (i >> 1) * 8][t + (i & 1)];
  }
}

// ------------------------------------------------------------------ Hopper: mbarrier, TMA, wgmma
static Mbar &mb(Worker *w, uint32_t off) {
  for (auto &m : w->mbar) if (m.off == off) return m;
  bail("error", "mbarrier used before mbarrier.init (shared offset " + std::to_string(off) + ")");
}
void mbar_init(uint32_t off, uint32_t count) {
  Worker *w = W; smem_ptr(off, 8, 8, true, nullptr);
  for (auto &m : w->mbar) if (m.off == off) { m = Mbar{off, count, count, 0, 0, {}}; return; }
  w->mbar.push_back(Mbar{off, count, count, 0, 0, {}});
}
static void mb_check(Worker *w, Mbar &m) {
  if (m.pending || m.tx) return;
  m.phase ^= 1; m.pending = m.count;
  for (int i = 0; i < w->n; ++i) { Fiber &f = w->f[i]; if (f.waiting == 3 && uint32_t(f.barid) == m.off) { f.waiting = 0; set_ready(w, i); } }
}
static void vc_join(VC &a, const VC &b) { for (int k = 0; k < 32; ++k) a[k] = std::max(a[k], b[k]); }
void mbar_arrive(uint32_t off, uint32_t tx) {
  Worker *w = W; Mbar &m = mb(w, off); Warp *wp = tls.cur->w; int wi = tls.cur->idx >> 5;
  if (!m.pending) bail("error", "mbarrier: more arrivals than its count in one phase");
  vc_join(m.vc, wp->vc); ++wp->vc[wi]; m.tx += tx; --m.pending; mb_check(w, m);
}
static void tma_do(Worker *w, const Tma &t) {
  const TensorMap &m = t.m; uint32_t row = m.box[0] * m.elem;
  for (uint32_t r = 0; r < m.box[1]; ++r) for (uint32_t c = 0; c < row; c += 16) {
    uint32_t a = t.dst + r * row + c, sh = m.swizzle == 3 ? 7 : m.swizzle == 2 ? 3 : m.swizzle == 1 ? 1 : 0;
    a ^= (a >> 7 & sh) << 4;
#ifdef SIM_HOOKS
    for (uint32_t i = a; i < a + 16; ++i) { Cell &x = w->cell[i]; x.async = false; }
#endif
    int64_t y = int64_t(t.c1) + r;
    for (uint32_t e = 0; e < 16; e += m.elem) {
      int64_t x = int64_t(t.c0) + (c + e) / m.elem; unsigned char *d = w->arena + a + e;
      if (x >= 0 && y >= 0 && uint64_t(x) < m.dim[0] && uint64_t(y) < m.dim[1]) std::memcpy(d, m.addr + y * m.stride[0] + x * m.elem, m.elem);
      else std::memset(d, 0, m.elem);
    }
  }
  Mbar &b = mb(w, t.bar); vc_join(b.vc, t.vc); b.tx -= int64_t(row) * m.box[1]; mb_check(w, b);
}
void mbar_wait(uint32_t off, uint32_t parity) {
  Worker *w = W; Fiber *me = tls.cur;
  for (;;) {
    Mbar &m = mb(w, off);
    if (m.phase != (parity & 1)) { vc_join(me->w->vc, m.vc); return; }
    bool did = false;                               // lazy copies land only when somebody waits for them
    for (size_t i = 0; i < w->tma.size(); ++i) if (w->tma[i].bar == off) { Tma t = w->tma[i]; w->tma.erase(w->tma.begin() + i); tma_do(w, t); did = true; break; }
    if (did) continue;
    me->waiting = 3; me->barid = int(off); clr_ready(w, me->idx); yield_blocked(w);
  }
}
void tma_load_2d(uint32_t dst, const TensorMap *mp, uint32_t bar, int c0, int c1, const void *pc) {
  Worker *w = W; const TensorMap &m = *mp;
  if (m.magic != TMAP_MAGIC) bail("error", "TMA: not a tensor map", pc);
  if (reinterpret_cast<uintptr_t>(mp) % 64) bail("error", "TMA: tensor map not 64-byte aligned", pc);
  uint32_t row = m.box[0] * m.elem, bytes = row * m.box[1];
  if (m.rank != 2 || row % 16 || (m.swizzle == 3 && row > 128)) bail("error", "TMA: box does not fit the instruction", pc);
  if (dst % (m.swizzle ? 128u << m.swizzle : 128u)) bail("error", "TMA: shared destination is not aligned for its swizzle mode", pc);
  smem_ptr(dst, bytes, 16, true, pc); mb(w, bar);
  Warp *wp = tls.cur->w; int wi = tls.cur->idx >> 5;
  Tma t{dst, m, bar, c0, c1, wp->vc, pc}; ++wp->vc[wi];
#ifdef SIM_HOOKS
  if (opt(O_RACE)) for (uint32_t i = dst; i < dst + bytes; ++i) w->cell[i].async = true;
#endif
  long mode = opt(O_CPASYNC);
  if (mode == 0 || (mode == 2 && rnd(w) & 1)) tma_do(w, t); else w->tma.push_back(t);
}
static WGroup &wg_of(Worker *w) { if (w->n % 128) bail("error", "wgmma needs whole warpgroups"); return w->wg[tls.cur->idx >> 7]; }
void wg_fence() {}
static uint32_t wg_addr(uint64_t d, int r, int k) {          // K-major, 128-byte swizzle
  if (d >> 62 != 1) bail("error", "wgmma: only 128-byte swizzle is emulated");
  uint32_t a = uint32_t(d & 0x3fff) << 4, sbo = uint32_t(d >> 32 & 0x3fff) << 4;
  a += (r >> 3) * sbo + (r & 7) * 128 + k * 2;
  return a ^ (a >> 7 & 7) << 4;
}
[[maybe_unused]] static void wg_mark(Worker *w, const Wg &o, int by) {
  for (int x = 0; x < 2; ++x) for (int r = 0; r < (x ? o.n : o.m); ++r) for (int k = 0; k < 16; k += 8) { uint32_t a = wg_addr(x ? o.db : o.da, r, k); for (int i = 0; i < 16; ++i) w->cell[a + i].aread += by; }
}
__attribute__((target_clones("arch=haswell", "default")))
static void wg_math(const float *A, const float *B, float *C, int m, int n) {
  for (int i = 0; i < m; ++i) for (int k = 0; k < 16; ++k) { float a = A[i * 16 + k]; for (int j = 0; j < n; ++j) C[i * n + j] += a * B[k * n + j]; }
}
static void wg_do(Worker *w, const Wg &o) {
  static thread_local std::vector<float> A, B, C; A.resize(o.m * 16); B.resize(o.n * 16); C.assign(o.m * o.n, 0.f);
  for (int x = 0; x < 2; ++x) for (int r = 0; r < (x ? o.n : o.m); ++r) for (int k = 0; k < 16; k += 8) {
    uint16_t v[8]; uint32_t a = wg_addr(x ? o.db : o.da, r, k);
    std::memcpy(v, smem_ptr2(a, 16, 16, false, o.pc, false), 16);
    for (int e = 0; e < 8; ++e) (x ? B[(k + e) * o.n + r] : A[r * 16 + k + e]) = bf2f(v[e]);
  }
  auto idx = [&](int t, int j, int i) { return ((t >> 5) * 16 + (t >> 2 & 7) + (i >> 1) * 8) * o.n + j * 8 + (t & 3) * 2 + (i & 1); };
  if (o.scale) for (int t = 0; t < 128; ++t) for (int j = 0; j < o.n / 8; ++j) for (int i = 0; i < 4; ++i) C[idx(t, j, i)] = o.d[t][j * 4 + i];
  wg_math(A.data(), B.data(), C.data(), o.m, o.n);
  for (int t = 0; t < 128; ++t) for (int j = 0; j < o.n / 8; ++j) for (int i = 0; i < 4; ++i) o.d[t][j * 4 + i] = C[idx(t, j, i)];
#ifdef SIM_HOOKS
  wg_mark(w, o, -1);
#endif
}
void wgmma_bf16(float *d, int m, int n, uint64_t da, uint64_t db, int scale, const void *pc) {
  Worker *w = W; Fiber *me = tls.cur; WGroup &g = wg_of(w); int t = me->idx & 127;
  if (g.arrived && (g.da != da || g.db != db)) bail("warp divergence", "threads of a warpgroup issue wgmma with different descriptors", pc);
  g.da = da; g.db = db; g.d[t] = d;
  if (++g.arrived < 128) { me->waiting = 2; clr_ready(w, me->idx); yield_blocked(w); return; }
  g.arrived = 0;
  int base = me->idx & ~127;
  for (int i = base; i < base + 128; ++i) if (i != me->idx) { w->f[i].waiting = 0; set_ready(w, i); }
  Wg o{{}, m, n, da, db, scale, pc, g.group}; std::memcpy(o.d, g.d, sizeof o.d);
#ifdef SIM_HOOKS
  wg_mark(w, o, 1);
#endif
  if (opt(O_CPASYNC) == 0 || !opt(O_WGASYNC)) { wg_do(w, o); 
#ifdef SIM_HOOKS
    wg_mark(w, o, 1); 
#endif
    for (auto &p : o.d) p = nullptr; }
  g.q.push_back(o);
}
void wg_commit() { WGroup &g = wg_of(W); Fiber *f = tls.cur; if (++f->wgroup > g.group) g.group = f->wgroup; }
void wg_wait(int pending) {
  Worker *w = W; WGroup &g = wg_of(w); size_t k = 0;
  for (auto &o : g.q) if (o.group < tls.cur->wgroup - pending) { if (o.d[0]) wg_do(w, o); 
#ifdef SIM_HOOKS
    else wg_mark(w, o, -1);
#endif
  } else g.q[k++] = o;
  g.q.resize(k);
}

// ------------------------------------------------------------------ running a block
static void fiber_main() {
#if ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  Worker *w = W;
  w->thunk(w->params);
  Fiber *me = tls.cur; Warp *wp = me->w;
  me->done = true; clr_ready(w, me->idx); --w->live; wp->alive &= ~(1u << me->lane);
  for (auto &p : wp->pend) if (p.arrived && (p.mask >> me->lane & 1)) bail("error", "thread exits while its warp waits for it at a warp-level operation");
  if (!w->live) to_main(w);
  for (auto &b : w->bar) if (b.arrived && b.expected < 0 && b.arrived == w->live) release(w, b);   // exited threads no longer count
  yield_blocked(w);
  __builtin_unreachable();
}
static int run_block(Worker *w, const Kernel *k, dim3 grid, dim3 block, uint32_t dyn, uint32_t lin) {
  int n = int(block.x * block.y * block.z), nw = (n + 31) / 32;
  size_t stk = size_t(opt(O_STACK));
  if (w->nstk < size_t(n) || w->stk != stk) {
    if (w->stacks) munmap(w->stacks, w->stk * w->nstk);
    w->nstk = size_t(std::max(n, 256)); w->stk = stk;
    w->stacks = (unsigned char *)mmap(nullptr, w->nstk * stk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (size_t i = 0; i < w->nstk; ++i) mprotect(w->stacks + i * stk, PAGE, PROT_NONE);
  }
#if ASAN
  ASAN_UNPOISON_MEMORY_REGION(w->stacks, w->nstk * stk);
#endif
  size_t need = SMEM_BASE + STAT + RZ + dyn + 4096;
  if (w->arena_n < need) {
    if (w->arena) munmap(w->arena, w->arena_n);
    w->arena_n = need;
    w->arena = (unsigned char *)mmap(nullptr, need, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  w->dyn = dyn; w->dyn_off = SMEM_BASE + STAT + RZ; w->dyn_off = (w->dyn_off + 1023) / 1024 * 1024; w->stat_used = SMEM_BASE; w->stat.clear();
#if ASAN
  ASAN_POISON_MEMORY_REGION(w->arena, w->arena_n);
  ASAN_UNPOISON_MEMORY_REGION(w->arena + w->dyn_off, dyn);
#endif
#if !ASAN
  std::memset(w->arena + w->dyn_off + dyn, 0xcb, RZ);   // canary
#endif
  std::memset(w->arena + w->dyn_off, 0xff, dyn);               // NaN in every float format
#ifdef SIM_HOOKS
  w->cell.assign(w->dyn_off + dyn + 64, Cell{}); w->rvcs.assign(1, VC{});
#endif
  w->f.resize(size_t(std::max(n, int(w->f.size())))); w->w.assign(size_t(nw), Warp{});
  w->n = w->live = n; w->abort = false; w->thunk = k->thunk; w->kname = k->name; w->blk = lin;
  w->rng = uint64_t(opt(O_SEED)) * 0x9E3779B97F4A7C15ull + lin + 1; std::memset(w->ready, 0, sizeof w->ready);
  for (auto &b : w->bar) { b.arrived = 0; b.who.clear(); }
  w->mbar.clear(); w->tma.clear(); w->wg.assign(size_t(nw + 3) / 4, WGroup{});
  for (int i = 0; i < nw; ++i) { w->w[i].vc[i] = 1; w->w[i].ep = w->w[i].cep = 1; w->w[i].alive = w->w[i].members = (i == nw - 1 && n % 32) ? (1u << n % 32) - 1 : 0xffffffffu; }
  for (int i = 0; i < n; ++i) {
    Fiber &f = w->f[i]; f.idx = i; f.lane = i & 31; f.w = &w->w[i >> 5]; f.done = false; f.waiting = 0; f.group = f.wgroup = 0; f.cp.clear(); f.fake = nullptr;
    f.tid = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    f.stk = w->stacks + size_t(i) * stk; f.sp = init_stack(f.stk + stk, fiber_main); set_ready(w, i);
  }
  tls.bid = {lin % grid.x, lin / grid.x % grid.y, lin / (grid.x * grid.y)}; tls.bdim = block; tls.gdim = grid; tls.smem = w->arena;
  Fiber *first = &w->f[opt(O_ORDER) == 1 || opt(O_ORDER) == 4 ? n - 1 : 0];
  tls.cur = first; tls.tid = first->tid; tls.lane = first->lane;
  w->in = true;
  if (sigsetjmp(w->jb, 0) == 0) {
#if ASAN
    void *fake; const void *b; size_t bn;
    __sanitizer_start_switch_fiber(&fake, first->stk, stk);
    sim_swap(&w->main_sp, first->sp);
    __sanitizer_finish_switch_fiber(fake, &b, &bn);
#else
    sim_swap(&w->main_sp, first->sp);
#endif
  }
  w->in = false;
#if !ASAN
  auto canary = [&](uint32_t o) { for (uint32_t i = o; i < o + RZ; ++i) if (w->arena[i] != 0xcb) { report("write outside shared arrays (canary)", nullptr, "shared offset " + std::to_string(i)); return; } };
  canary(w->dyn_off + dyn);
  for (auto &t : w->stat) { uint32_t o = uint32_t(t.p - w->arena); canary(o - RZ); canary(o + t.n); }
#endif
  return w->abort ? 1 : 0;
}

// ------------------------------------------------------------------ SIGSEGV -> report (guard pages)
static struct sigaction old_segv;
static void on_segv(int s, siginfo_t *si, void *u) {
  Worker *w = W;
  if (w && w->in) {
    char b[200]; const DevAlloc *a = in_dev(si->si_addr) ? dev_find(si->si_addr) : nullptr;
    if (!a && in_dev(si->si_addr)) a = dev_find((char *)si->si_addr - PAGE);
    if (a) snprintf(b, sizeof b, "address %p, %td bytes after the start of %s allocation of %zu bytes", si->si_addr, (unsigned char *)si->si_addr - a->p, a->live ? "an" : "a freed", a->n);
    else snprintf(b, sizeof b, "address %p", si->si_addr);
    report("illegal address (guard page)", nullptr, b);
    w->abort = true;
    siglongjmp(w->jb, 1);
  }
  if (old_segv.sa_flags & SA_SIGINFO) old_segv.sa_sigaction(s, si, u);
  else { sigaction(SIGSEGV, &old_segv, nullptr); raise(s); }
}
static Kernel *registry;
static std::atomic<uint64_t> total_switches;
} // namespace sim

using namespace sim;
extern "C" {
void sim_register(Kernel *k) { k->next = registry; registry = k; }
const sim_kernel *sim_find(const char *name) {
  for (auto *k = registry; k; k = k->next) if (!strcmp(k->name, name)) return reinterpret_cast<const sim_kernel *>(k);
  return nullptr;
}
int sim_nparams(const sim_kernel *k) { return reinterpret_cast<const Kernel *>(k)->nparams; }
uint32_t sim_param_size(const sim_kernel *k, int i) { return reinterpret_cast<const Kernel *>(k)->sizes[i]; }
void sim_set(const char *name, long v) { for (auto &o : opts) if (!strcmp(o.name, name)) o.v = v; }
int sim_errors(void) { return err_count; }
const char *sim_error_text(void) { return err_text.c_str(); }
void sim_clear_errors(void) { err_count = 0; err_text.clear(); err_seen.clear(); }
unsigned long long sim_switches(void) { return total_switches; }

void *sim_dev_alloc(size_t n) {
  std::lock_guard<std::mutex> g(dev_mu);
  if (!dev_base) {
    dev_base = dev_next = (unsigned char *)mmap(nullptr, DEV_RESERVE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (dev_base == MAP_FAILED) { dev_base = nullptr; return nullptr; }
    static char alt[65536]; stack_t ss{}, old{}; ss.ss_sp = alt; ss.ss_size = sizeof alt;
    if (!ASAN && !sigaltstack(nullptr, &old) && old.ss_flags & SS_DISABLE) sigaltstack(&ss, nullptr);
    struct sigaction sa{}; sa.sa_sigaction = on_segv; sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    if (!ASAN) sigaction(SIGSEGV, &sa, &old_segv);
  }
  size_t map = (n + PAGE - 1) / PAGE * PAGE; if (!map) map = PAGE;
  unsigned char *b = dev_next; dev_next += map + PAGE;
  mprotect(b, map, PROT_READ | PROT_WRITE);
  unsigned char *p = b + (map - n) / 16 * 16;       // end flush against the guard page (16-byte aligned start)
  std::memset(b, 0xff, map);
  dev_allocs.push_back({p, n, map, true});
  size_t p0 = (b - dev_base) / PAGE; dev_page.resize(p0 + map / PAGE + 1);
  for (size_t i = 0; i < map / PAGE; ++i) dev_page[p0 + i] = uint32_t(dev_allocs.size());
#if ASAN
  ASAN_POISON_MEMORY_REGION(b, map); ASAN_UNPOISON_MEMORY_REGION(p, n);
#endif
  return p;
}
int sim_dev_free(void *p) {
  std::lock_guard<std::mutex> g(dev_mu);
  if (!in_dev(p)) return 1;
  auto *a = const_cast<DevAlloc *>(dev_find(p));
  if (!a || a->p != p || !a->live) return 1;
  a->live = false;
  unsigned char *b = a->p - (a->p - dev_base) % PAGE;
#if ASAN
  ASAN_POISON_MEMORY_REGION(b, a->map);
#endif
  madvise(b, a->map, MADV_DONTNEED); mprotect(b, a->map, PROT_NONE);
  size_t i = a - dev_allocs.data(); if (i < gshadow.size()) std::vector<GCell>().swap(gshadow[i]);
  return 0;
}
// is [p, p+n) inside one live allocation?
int sim_dev_check(const void *p, size_t n) {
  std::lock_guard<std::mutex> g(dev_mu);
  if (!in_dev(p)) return 0;
  auto *a = dev_find(p); auto *q = (const unsigned char *)p;
  return a && a->live && q >= a->p && q + n <= a->p + a->n;
}

int sim_launch(const sim_kernel *kk, const uint32_t g[3], const uint32_t b[3], uint32_t dyn, void **params) {
  auto *k = reinterpret_cast<const Kernel *>(kk);
  dim3 grid{g[0], g[1], g[2]}, block{b[0], b[1], b[2]};
  uint64_t n = uint64_t(grid.x) * grid.y * grid.z, nt = uint64_t(block.x) * block.y * block.z;
  if (!n || !nt || nt > 1024 || block.z > 64 || grid.y > 65535 || grid.z > 65535 || dyn > 232448) return 1;
  ++launch_id;
  long th = opt(O_THREADS);
#ifdef SIM_HOOKS
  th = 1;
#endif
  th = std::min<long>(th, long(n));
  std::atomic<uint64_t> next{0}; std::atomic<int> bad{0};
  auto work = [&] {
    static thread_local Worker worker;
    W = &worker; worker.params = params; worker.nparams = k->nparams; worker.param_sizes = k->sizes; worker.switches = 0;
#if ASAN
    pthread_attr_t at; pthread_getattr_np(pthread_self(), &at); void *sa; size_t sn; pthread_attr_getstack(&at, &sa, &sn); pthread_attr_destroy(&at);
    worker.mstk = sa; worker.mstkn = sn;
#endif
    for (;;) {
      uint64_t i = next++; if (i >= n || bad) break;
      uint64_t j = opt(O_BLOCKORDER) == 1 ? n - 1 - i : i;
      if (run_block(&worker, k, grid, block, dyn, uint32_t(j))) bad = 1;
    }
    total_switches += worker.switches;
    W = nullptr;
  };
  if (th <= 1) work();
  else { std::vector<std::thread> v; for (long i = 0; i < th; ++i) v.emplace_back(work); for (auto &t : v) t.join(); }
  return bad ? 2 : 0;
}
}

// ------------------------------------------------------------------ the __tsan_* hooks (no libtsan)
#ifdef SIM_HOOKS
static inline void hook(const void *p, uint32_t n, bool write, const void *pc) {
  Worker *w = W; if (!w || !w->in) return;
  auto *q = static_cast<const unsigned char *>(p);
  if (q >= w->stacks && q < w->stacks + w->stk * w->nstk) return;
  if (q >= w->arena && q < w->arena + w->arena_n) {
    uint32_t o = uint32_t(q - w->arena); bool ok = o >= w->dyn_off && o + n <= w->dyn_off + w->dyn;
    if (!ok) for (size_t i = 0; i < w->stat.size() && !ok; ++i) { uint32_t s = uint32_t(w->stat[i].p - w->arena), e = i + 1 < w->stat.size() ? uint32_t(w->stat[i + 1].p - w->arena) - RZ : w->stat_used; ok = o >= s && o + n <= e; }
    if (!ok) bail("out-of-bounds shared memory", std::to_string(n) + "-byte " + (write ? "write" : "read") + " at shared offset " + std::to_string(o), pc);
    smem_access(o, n, write, pc); return;
  }
  if (in_dev(p)) { gmem_access(p, n, write, false, pc); return; }
  // anything else: the module's own data, its TLS, or a host pointer handed to a kernel
  static unsigned char *lo, *hi;
  if (!lo) {
    Dl_info i; dladdr((void *)&hook, &i); lo = (unsigned char *)i.dli_fbase;
    dl_iterate_phdr([](struct dl_phdr_info *inf, size_t, void *) { if ((unsigned char *)inf->dlpi_addr == lo) for (int k = 0; k < inf->dlpi_phnum; ++k) if (inf->dlpi_phdr[k].p_type == PT_LOAD) hi = std::max(hi, lo + inf->dlpi_phdr[k].p_vaddr + inf->dlpi_phdr[k].p_memsz); return 0; }, nullptr);
  }
  if (q >= lo && q < hi) return;
  if (uintptr_t(q) - uintptr_t(&tls) + 4096 < 8192) return;
  for (int i = 0; i < w->nparams; ++i) if (!write && q >= w->params[i] && q + n <= (unsigned char *)w->params[i] + w->param_sizes[i]) return;   // generic loads of parameters
  bail("host pointer used in a kernel", write ? "write" : "read", pc);
}
namespace sim { void access(const void *p, uint32_t n, bool write, const void *pc) { hook(p, n, write, pc); } }
extern "C" {
#define H(N) void __tsan_read##N(void *p) { hook(p, N, false, __builtin_return_address(0)); } void __tsan_write##N(void *p) { hook(p, N, true, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##N(void *p) { hook(p, N, false, __builtin_return_address(0)); } void __tsan_unaligned_write##N(void *p) { hook(p, N, true, __builtin_return_address(0)); }
H(1) H(2) H(4) H(8) H(16)
void __tsan_read_range(void *p, long n) { hook(p, uint32_t(n), false, __builtin_return_address(0)); }
void __tsan_write_range(void *p, long n) { hook(p, uint32_t(n), true, __builtin_return_address(0)); }
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
// atomics: the shim has already noted the access; perform it
uint32_t __tsan_atomic32_load(const uint32_t *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
uint64_t __tsan_atomic64_load(const uint64_t *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
void __tsan_atomic32_store(uint32_t *p, uint32_t v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
uint32_t __tsan_atomic32_fetch_add(uint32_t *p, uint32_t v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
uint64_t __tsan_atomic64_fetch_add(uint64_t *p, uint64_t v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
int __tsan_atomic32_compare_exchange_strong(uint32_t *p, uint32_t *c, uint32_t v, int, int) { return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
int __tsan_atomic64_compare_exchange_strong(uint64_t *p, uint64_t *c, uint64_t v, int, int) { return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
uint32_t __tsan_atomic32_compare_exchange_val(uint32_t *p, uint32_t c, uint32_t v, int, int) { __atomic_compare_exchange_n(p, &c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); return c; }
void __tsan_atomic_thread_fence(int) {}
}
#endif
