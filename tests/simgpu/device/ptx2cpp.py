#!/usr/bin/env python3
"""ptx2cpp.py IN.ptx... > OUT.cpp : translate NVRTC's PTX (inline assembly included) to C++ for the emulator.
One C++ function per .entry, one local variable per register, one goto label per PTX label."""
import re, sys, struct

SZ = {'b8':1,'u8':1,'s8':1,'b16':2,'u16':2,'s16':2,'f16':2,'bf16':2,'b32':4,'u32':4,'s32':4,'f32':4,'b64':8,'u64':8,'s64':8,'f64':8,'bf16x2':4,'f16x2':4}
CT = {'b8':'uint8_t','u8':'uint8_t','s8':'int8_t','b16':'uint16_t','u16':'uint16_t','s16':'int16_t','f16':'uint16_t','bf16':'uint16_t','b32':'uint32_t','u32':'uint32_t','s32':'int32_t','f32':'float','b64':'uint64_t','u64':'uint64_t','s64':'int64_t','f64':'double','pred':'bool'}
SREG = {'%tid':'threadIdx','%ctaid':'blockIdx','%ntid':'blockDim','%nctaid':'gridDim'}
class Bad(Exception): pass

class Kernel:
    def __init__(s, name, params):
        s.name, s.params, s.out, s.regs, s.smem, s.scope, s.nscope, s.local = name, params, [], {}, {}, [], 0, {}
        s.reqs = ''
    # ---- operands
    def label(s, n):
        for sc in reversed(s.scope):
            if n in sc['labels']: return sc['labels'][n]
        return 'L_' + re.sub(r'\W', '_', n)
    def var(s, r):
        for sc in reversed(s.scope):
            if r in sc['regs']: return sc['regs'][r]
        if r in s.regs: return s.regs[r]
        raise Bad('unknown register ' + r)
    def isreg(s, o): return any(o in sc['regs'] for sc in s.scope) or o in s.regs
    def src(s, o, t):
        """C++ expression of operand o read as PTX type t"""
        o = o.strip()
        if o.startswith('!'): return '!' + s.src(o[1:], t)
        if s.isreg(o):
            v, d = s.var(o)
            if t == 'pred' or d == 'pred': return v
            return f'rd<{CT[t]}>({v})'
        m = re.match(r'(%tid|%ctaid|%ntid|%nctaid)\.([xyz])$', o)
        if m: return f'{SREG[m[1]]}.{m[2]}'
        if o == '%laneid': return 'sim::tls.lane'
        if o == 'WARP_SZ': return '32'
        m = re.match(r'0[fF]([0-9a-fA-F]{8})$', o)
        if m: return f'rd<{CT[t]}>(0x{m[1]}u)' if t != 'f64' else 'f64lit'
        m = re.match(r'0[dD]([0-9a-fA-F]{16})$', o)
        if m: return f'rd<{CT[t]}>(uint64_t(0x{m[1]}ull))'
        if re.match(r'-?\d+$', o):
            if t in ('f32', 'f64'): return f'{CT[t]}({o})'
            return f'{CT[t]}({o}ll)'
        if re.match(r'-?0x[0-9a-fA-F]+U?$', o): return f'{CT[t]}({o.rstrip("U")}ull)'
        if o in s.smem: return f'{CT[t]}({s.smem[o]})'
        if o in s.local: return f'uint64_t({s.local[o]})'
        if o in GLOBALS: return f'uint64_t({GLOBALS[o]})'
        for i, p in enumerate(s.params):
            if p[0] == o: return f'uint64_t(P[{i}])'
        raise Bad('operand ' + o)
    def put(s, o, expr):
        if o == '_': return f'(void)({expr});'
        v, d = s.var(o)
        return f'{v} = {expr};' if d == 'pred' else f'wr({v}, {expr});'
    def addr(s, o):
        """[base+off] -> (expr, paramindex or None, offset)"""
        m = re.match(r'\[\s*([^\]+\s]+)\s*(?:\+\s*(-?\d+))?\s*\]$', o)
        if not m: raise Bad('address ' + o)
        b, off = m[1], int(m[2] or 0)
        for i, p in enumerate(s.params):
            if p[0] == b: return ('param', i, off)
        w = 'u64'
        return (f'({s.src(b, w)} + {off}ll)', None, off)

GLOBALS = {}
def vec(o): return [x.strip() for x in o.strip()[1:-1].split(',')]
def split(s):
    out, d, cur = [], 0, ''
    for c in s:
        if c in '{[(': d += 1
        if c in '}])': d -= 1
        if c == ',' and not d: out.append(cur.strip()); cur = ''
        else: cur += c
    if cur.strip(): out.append(cur.strip())
    return out

ARITH = set('add sub mul mad fma min max div rem neg abs rcp sqrt rsqrt ex2 lg2 sin cos tanh cvt setp selp and or xor not shl shr bfi bfe prmt copysign mov popc clz brev lop3 shf'.split())
OKMOD = set('rn ftz approx full lo wide hi rni rzi rmi rpi num wrap clamp l r'.split()) | set('eq ne lt le gt ge ltu leu gtu geu equ neu ls hs and or xor'.split())
CMP = {'eq':'==','ne':'!=','lt':'<','le':'<=','gt':'>','ge':'>=','ltu':'<','leu':'<=','gtu':'>','geu':'>=','equ':'==','neu':'!=','lo':'<','ls':'<=','hi':'>','hs':'>='}
BIN = {'add':'+','sub':'-','and':'&','or':'|','xor':'^'}

def ins(k, op, a):
    t = op.split('.'); o, ty = t[0], t[-1]
    S, D = k.src, k.put
    if op == 'cvt.sat.f32.f32': return D(a[0], f'sat({S(a[1], ty)})')
    if op == 'fma.rm.f32': return D(a[0], f'fma_rm({S(a[1], ty)}, {S(a[2], ty)}, {S(a[3], ty)})')
    if o in ARITH:
        odd = [x for x in t[1:] if x not in CT and x not in OKMOD and x not in ('bf16x2',)]
        if odd: raise Bad(f'modifier {odd}')
    U = {'s32':'u32','s64':'u64','s16':'u16'}
    if op in ('ret', 'exit'): return 'return;'
    if o == 'bra': return f'goto {k.label(a[0])};'
    if o in ('fence', 'membar', 'setmaxnreg', 'griddepcontrol', 'pragma', 'discard', 'prefetch') or op.startswith('cp.async.bulk.prefetch'): return ';'
    if op in ('bar.sync', 'barrier.sync', 'barrier.sync.aligned', 'bar.sync.aligned'):
        return f'sim::block_barrier({S(a[0], "u32")}, {S(a[1], "s32") if len(a) > 1 else "-1"});'
    if op.startswith('bar.warp.sync'): return f'__syncwarp({S(a[0], "u32")});'
    if o == 'ld' and t[1] == 'param':
        e, i, off = k.addr(a[1]); w = SZ[ty]
        ds = vec(a[0]) if a[0].startswith('{') else [a[0]]
        if i is None: return ' '.join(D(d, f'ldp<{CT[ty]}>((void *){e}, {j * w})') for j, d in enumerate(ds))   # a parameter's address in a register
        return ' '.join(D(d, f'ldp<{CT[ty]}>(P[{i}], {off + j * w})') for j, d in enumerate(ds))
    if o in ('ld', 'st'):
        sp = next((x for x in t[1:] if x.split('::')[0] in ('global', 'shared', 'local', 'const', 'param')), 'gen').split('::')[0]
        w = SZ[ty]; v = a[0] if o == 'ld' else a[1]; ad = a[1] if o == 'ld' else a[0]
        xs = vec(v) if v.startswith('{') else [v]; e, i, off = k.addr(ad)
        base = f'shp({e}, {w * len(xs)}, {"false" if o == "ld" else "true"})' if sp == 'shared' else f'gp({e}, {w * len(xs)}, {"false" if o == "ld" else "true"})'
        if o == 'ld':
            return f'{{ auto *q = {base}; {CT[ty]} T[{len(xs)}]; memcpy(T, q, sizeof T); ' + ' '.join(D(x, f'T[{j}]') for j, x in enumerate(xs)) + ' }'
        return f'{{ auto *q = {base}; {CT[ty]} T[{len(xs)}] = {{' + ', '.join(S(x, ty) for x in xs) + '}; memcpy(q, T, sizeof T); }'
    if o == 'atom' or o == 'red':
        what = t[-2]; e, i, off = k.addr(a[1] if o == 'atom' else a[0]); v = S(a[2] if o == 'atom' else a[1], ty)
        fn = {'add':'atomicAdd', 'max':'atomicMax'}[what]
        x = f'{fn}(({CT[ty]} *)gpa({e}), {v})'
        return D(a[0], x) if o == 'atom' else x + ';'
    if op in ('cvta.to.global.u64', 'cvta.global.u64', 'cvta.param.u64', 'cvta.to.local.u64', 'cvta.local.u64'): return D(a[0], S(a[1], 'u64'))
    if op == 'cvta.shared.u64': return D(a[0], f'uint64_t(sim::tls.smem + {S(a[1], "u64")})')
    if op == 'cvta.to.shared.u64': return D(a[0], f'uint64_t(sim::smem_offset((void *){S(a[1], "u64")}))')
    if o == 'mov':
        if a[1].startswith('{'):                   # pack
            xs = vec(a[1]); w = SZ[ty] // len(xs); e = ' | '.join(f'uint64_t({S(x, f"b{w*8}")}) << {j*w*8}' for j, x in enumerate(xs)); return D(a[0], f'{CT[ty]}({e})')
        if a[0].startswith('{'):
            xs = vec(a[0]); w = SZ[ty] // len(xs); return f'{{ uint64_t q = {S(a[1], ty)}; ' + ' '.join(D(x, f'{CT[f"b{w*8}"]}(q >> {j*w*8})') for j, x in enumerate(xs)) + ' }'
        return D(a[0], S(a[1], ty))
    if o == 'setp':
        c = t[1]; x, y = S(a[1], ty), S(a[2], ty); e = f'({x} {CMP[c]} {y})'
        if c in ('ltu','leu','gtu','geu','equ','neu') and ty in ('f32', 'f64'): e = f'({e} || std::isnan({x}) || std::isnan({y}))'
        if c == 'num': e = f'(!std::isnan({x}) && !std::isnan({y}))'
        if c == 'ne' and ty in ('f32', 'f64'): e = f'({x} != {y} && !std::isnan({x}) && !std::isnan({y}))'
        if len(t) > 3 and t[2] in ('and', 'or', 'xor'): e = f'({e} {BIN[t[2]]} {S(a[3], "pred")})'
        if '|' in a[0]: d, n = a[0].split('|'); return D(d, e) + D(n, f'!{k.var(d)[0]}')
        return D(a[0], e)
    if o == 'selp': return D(a[0], f'({S(a[3], "pred")} ? {S(a[1], ty)} : {S(a[2], ty)})')
    if o in BIN and ty == 'pred': return D(a[0], f'bool({S(a[1], ty)} {BIN[o]} {S(a[2], ty)})')
    if o == 'not': return D(a[0], f'!{S(a[1], ty)}' if ty == 'pred' else f'{CT[ty]}(~{S(a[1], ty)})')
    if o in BIN: ty2 = U.get(ty, ty); return D(a[0], f'{CT[ty2]}({S(a[1], ty2)} {BIN[o]} {S(a[2], ty2)})')
    if o == 'mul':
        if 'wide' in t: w = {'s32':'int64_t','u32':'uint64_t','s16':'int32_t','u16':'uint32_t'}[ty]; return D(a[0], f'{w}({S(a[1], ty)}) * {w}({S(a[2], ty)})')
        if 'hi' in t: w = '__int128' if SZ[ty] == 8 else 'int64_t' if ty == 's32' else 'uint64_t'; return D(a[0], f'{CT[ty]}(({w}({S(a[1], ty)}) * {w}({S(a[2], ty)})) >> {SZ[ty]*8})')
        ty2 = U.get(ty, ty); return D(a[0], f'{CT[ty2]}({S(a[1], ty2)} * {S(a[2], ty2)})')
    if o == 'mad':
        if 'wide' in t: w = {'s32':'int64_t','u32':'uint64_t'}[ty]; r = {'s32':'s64','u32':'u64'}[ty]; return D(a[0], f'{w}({S(a[1], ty)}) * {w}({S(a[2], ty)}) + {S(a[3], r)}')
        ty2 = U.get(ty, ty); return D(a[0], f'{CT[ty2]}({S(a[1], ty2)} * {S(a[2], ty2)} + {S(a[3], ty2)})')
    if o == 'fma': return D(a[0], f'std::fma({S(a[1], ty)}, {S(a[2], ty)}, {S(a[3], ty)})')
    if o in ('min', 'max'):
        f = f'std::f{o}' if ty in ('f32', 'f64') else f'std::{o}'; return D(a[0], f'{f}({S(a[1], ty)}, {S(a[2], ty)})')
    if o == 'lop3': return D(a[0], f'lop3({S(a[1], "u32")}, {S(a[2], "u32")}, {S(a[3], "u32")}, {a[4]})')
    if o == 'shf': return D(a[0], f'shf{t[1]}({S(a[1], "u32")}, {S(a[2], "u32")}, {S(a[3], "u32")}, {"true" if t[2] == "wrap" else "false"})')
    if o in ('div', 'rem'): return D(a[0], f'{CT[ty]}({S(a[1], ty)} {"/" if o == "div" else "%"} {S(a[2], ty)})')
    if o in ('neg', 'abs'): return D(a[0], f'-{S(a[1], ty)}' if o == 'neg' else f'std::abs({S(a[1], ty)})')
    if o == 'rcp': return D(a[0], f'1.0f / {S(a[1], ty)}')
    if o in ('sqrt', 'rsqrt', 'ex2', 'lg2', 'sin', 'cos', 'tanh'):
        f = {'sqrt':'sqrtf','rsqrt':'rsqrtf','ex2':'exp2f','lg2':'log2f','sin':'sinf','cos':'cosf','tanh':'tanhf'}[o]; return D(a[0], f'{f}({S(a[1], ty)})')
    if o == 'shl': return D(a[0], f'shl({S(a[1], ty)}, {S(a[2], "u32")})')
    if o == 'shr': return D(a[0], f'shr({S(a[1], ty)}, {S(a[2], "u32")})')
    if o == 'bfi': return D(a[0], f'bfi({S(a[1], ty)}, {S(a[2], ty)}, {S(a[3], "u32")}, {S(a[4], "u32")})')
    if o == 'bfe': return D(a[0], f'bfe({S(a[1], ty)}, {S(a[2], "u32")}, {S(a[3], "u32")})')
    if o == 'prmt': return D(a[0], f'prmt({S(a[1], "u32")}, {S(a[2], "u32")}, {S(a[3], "u32")})')
    if o == 'cvt':
        d, s_ = t[-2], t[-1]
        rnd = next((x for x in t[1:-2] if x in ('rni', 'rzi', 'rmi', 'rpi')), None)
        if d in ('f32', 'f64') and s_ == d and rnd: return D(a[0], f"std::{dict(rni='rint', rzi='trunc', rmi='floor', rpi='ceil')[rnd]}({S(a[1], s_)})")
        if d == 'bf16x2': return D(a[0], f'uint32_t(sim::f2bf({S(a[2], "f32")}) | uint32_t(sim::f2bf({S(a[1], "f32")})) << 16)')
        if d == 'bf16' and s_ == 'f32': return D(a[0], f'sim::f2bf({S(a[1], "f32")})')
        if s_ == 'f16' and d == 'f32': return D(a[0], f'float(__builtin_bit_cast(_Float16, uint16_t({S(a[1], "u16")})))')
        if d == 'f16' and s_ == 'f32': return D(a[0], f'__builtin_bit_cast(uint16_t, _Float16({S(a[1], "f32")}))')
        if s_ == 'bf16' and d == 'f32': return D(a[0], f'sim::bf2f({S(a[1], "u16")})')
        if d[0] in 'su' and s_ in ('f32', 'f64'):
            r = {'rni':'rintf','rzi':'truncf','rmi':'floorf','rpi':'ceilf'}[rnd]; return D(a[0], f'{CT[d]}({r}({S(a[1], s_)}))')
        return D(a[0], f'{CT[d]}({S(a[1], s_)})')
    if o == 'copysign': return D(a[0], f'std::copysign({S(a[2], ty)}, {S(a[1], ty)})')      # PTX: sign of a, magnitude of b
    if o == 'popc': return D(a[0], f'uint32_t(__builtin_popcountll({S(a[1], "u" + ty[1:])}))')
    if o == 'clz': return D(a[0], f'uint32_t(std::countl_zero({S(a[1], "u" + ty[1:])}))')
    if o == 'brev': return D(a[0], f'brev({S(a[1], "u32")})')
    if op == 'bfind.shiftamt.u32': return D(a[0], f'({S(a[1], "u32")} ? uint32_t(std::countl_zero({S(a[1], "u32")})) : 0xffffffffu)')
    if op == 'bfind.u32': return D(a[0], f'({S(a[1], "u32")} ? 31u - uint32_t(std::countl_zero({S(a[1], "u32")})) : 0xffffffffu)')
    if o == 'activemask': return D(a[0], '0xffffffffu')   # one legal answer of many; kernels must not depend on it
    if op.startswith('shfl.sync.'):
        d = a[0].split('|'); mode = {'bfly':3,'down':2,'up':1,'idx':0}[t[2]]
        e = f'bool pr; uint32_t q = shfl({mode}, {S(a[1], "u32")}, {S(a[2], "u32")}, {S(a[3], "u32")}, {S(a[4], "u32")}, pr);'
        return '{ ' + e + D(d[0], 'q') + (D(d[1], 'pr') if len(d) > 1 else '') + ' }'
    if op.startswith('vote.sync.ballot'): return D(a[0], f'__ballot_sync({S(a[2], "u32")}, {S(a[1], "pred")})')
    if op.startswith('vote.sync.any'): return D(a[0], f'(__ballot_sync({S(a[2], "u32")}, {S(a[1], "pred")}) != 0)')
    if op.startswith('cp.async.cg.shared.global') or op.startswith('cp.async.ca.shared.global'):
        e, _, _ = k.addr(a[0]); g, _, _ = k.addr(a[1]); n = S(a[2], 'u32')
        return f'sim::cp_async(uint32_t({e}), (const void *)({g}), {n}, {S(a[3], "u32") if len(a) > 3 else n}, PC);'
    if op == 'cp.async.commit_group': return 'sim::cp_async_commit();'
    if op == 'cp.async.wait_group': return f'sim::cp_async_wait({a[0]});'
    if op == 'cp.async.wait_all': return 'sim::cp_async_wait(0);'
    if op.startswith('ldmatrix.sync.aligned.m8n8.'):
        n = int(t[4][1:]); e, _, _ = k.addr(a[1]); xs = vec(a[0])
        return f'{{ uint32_t q[{n}]; sim::ldmatrix<{n}, {"true" if "trans" in t else "false"}>(q, uint32_t({e}), PC); ' + ' '.join(D(x, f'q[{j}]') for j, x in enumerate(xs)) + ' }'
    if op == 'mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32':
        d, A, B, C = map(vec, a)
        return '{ float d[4] = {' + ', '.join(S(x, 'f32') for x in C) + '}; uint32_t A[4] = {' + ', '.join(S(x, 'u32') for x in A) + '}, B[2] = {' + ', '.join(S(x, 'u32') for x in B) + '}; sim::mma16816_bf16(d, A, B); ' + ' '.join(D(x, f'd[{j}]') for j, x in enumerate(d)) + ' }'
    if op.startswith('wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16'):
        d = vec(a[0])                              # accumulators live in an array for the whole kernel: wgmma writes them later
        assert [x.strip() for x in a[4:6]] == ['1', '1'] and a[6:8] == ['0', '0'], a
        return f'WG({len(d)}, {S(a[3], "pred")}, {S(a[1], "u64")}, {S(a[2], "u64")}, ' + ', '.join(k.var(x)[0] for x in d) + ');'
    if op.startswith('wgmma.fence'): return 'sim::wg_fence();'
    if op.startswith('wgmma.commit_group'): return 'sim::wg_commit();'
    if op.startswith('wgmma.wait_group'): return f'sim::wg_wait({a[0]});'
    if op.startswith('mbarrier.init'): e, _, _ = k.addr(a[0]); return f'sim::mbar_init(uint32_t({e}), {S(a[1], "u32")});'
    if op.startswith('mbarrier.arrive.expect_tx'): e, _, _ = k.addr(a[1]); return f'sim::mbar_arrive(uint32_t({e}), {S(a[2], "u32")});'
    if op.startswith('mbarrier.arrive'): e, _, _ = k.addr(a[1]); return f'sim::mbar_arrive(uint32_t({e}), 0);'
    if op.startswith('mbarrier.try_wait.parity'): e, _, _ = k.addr(a[1]); return f'sim::mbar_wait(uint32_t({e}), {S(a[2], "u32")}); ' + D(a[0], 'true')
    if op.startswith('cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier'):
        e, _, _ = k.addr(a[0]); m = re.match(r'\[\s*(\S+?)\s*,\s*\{(.*)\}\s*\]', a[1]); b, _, _ = k.addr(a[2]); c = [x.strip() for x in m[2].split(',')]
        return f'sim::tma_load_2d(uint32_t({e}), (const sim::TensorMap *){S(m[1], "u64")}, uint32_t({b}), {S(c[0], "s32")}, {S(c[1], "s32")}, PC);'
    raise Bad(f'instruction {op} {a}')

def reg_decl(k, stmt, regs, suffix=''):
    m = re.match(r'\.reg\s+\.(\w+)\s+(.*)$', stmt, re.S); ty = m[1]; ct = {'pred':'bool', 1:'uint8_t', 2:'uint16_t', 4:'uint32_t', 8:'uint64_t'}['pred' if ty == 'pred' else SZ[ty]]
    out = []
    for n in split(m[2]):
        q = re.match(r'(%?[\w$]+)<(\d+)>$', n)
        names = [f'{q[1]}{i}' for i in range(int(q[2]))] if q else [n]
        for x in names: c = re.sub(r'\W', '_', x) + suffix; regs[x] = (c, ty); out.append(c)
    return f'[[maybe_unused]] {ct} ' + ', '.join(out) + ';'

def tokens(body):
    """statements ending in ';', and the braces that open or close an inline-asm block"""
    out, cur, depth = [], '', 0
    for c in body:
        if c == '{' and not depth and (not cur.strip() or cur.strip().endswith(':')):
            if cur.strip(): out.append(cur.strip() + ';')
            out.append('{'); cur = ''; continue
        if c == '}' and not depth:
            if cur.strip(): out.append(cur.strip() + ';')
            out.append('}'); cur = ''; continue
        depth += (c == '{') - (c == '}'); cur += c
        if c == ';' and not depth: out.append(cur.strip()); cur = ''
    return out

def translate(text, file):
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M))
    text = re.sub(r'^\s*\.file[^\n]*$', '', text, flags=re.M)
    text = re.sub(r'^\s*\.loc\s+(\d+)\s+(\d+)[^\n]*$', r'\t.loc \1 \2;', text, flags=re.M)
    text = re.sub(r'//[^\n]*', '', text)
    text = re.sub(r'\.section[^{]*\{.*?\n\}', '', text, flags=re.S); text = re.sub(r'/\*.*?\*/', '', text, flags=re.S)
    kernels, unknown = [], {}
    dyn = re.findall(r'\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]', text)
    for m in re.finditer(r'\.global\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]', text): GLOBALS[m[2]] = 'nullptr'
    for m in re.finditer(r'\.visible\s+\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{', text, re.S):
        params = []
        for p in split(m[2]):
            q = re.match(r'\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?', p); params.append((q[3], SZ[q[2]] * int(q[4] or 1)))
        k = Kernel(m[1], params); i = m.end(); d = 1; body = ''
        while d:
            c = text[i]; d += (c == '{') - (c == '}'); body += c if d else ''; i += 1
        for n in dyn: k.smem[n] = 'DYN'
        toks = tokens(body)
        decl, nst, loc = [], 0, ''
        for tk in toks:
            tk = tk.strip()
            if tk == '{':
                k.nscope += 1; k.scope.append({'regs': {}, 'labels': {}, 'id': k.nscope}); k.out.append('{'); continue
            if tk == '}': k.scope.pop(); k.out.append('}'); continue
            st = tk[:-1].strip()
            while True:
                lm = re.match(r'([$\w]+):\s*', st)
                if not lm or '::' in st[:lm.end() + 1]: break
                n = lm[1]
                if k.scope: k.out.append(f'{k.label(n)}:;') if n in k.scope[-1]['labels'] else (k.scope[-1]['labels'].__setitem__(n, f'L_{n}_{k.scope[-1]["id"]}'), k.out.append(f'{k.label(n)}:;'))
                else: k.out.append(k.label(n) + ':;')
                st = st[lm.end():]
            if not st: continue
            if st.startswith('.reg'):
                if k.scope: k.out.append(reg_decl(k, st, k.scope[-1]['regs'], f'_s{k.scope[-1]["id"]}'))
                else: decl.append(reg_decl(k, st, k.regs))
                continue
            sm = re.match(r'\.shared\s+\.align\s+(\d+)\s+\.b\d+\s+([\w$]+)\[(\d+)\]$', st)
            if sm: k.smem[sm[2]] = f'sim::smem_offset(sim::static_smem(&tag_{k.name}[{nst}], {sm[3]}, {max(16, int(sm[1]))}))'; nst += 1; continue
            sm = re.match(r'\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)$', st)
            if sm: k.smem[sm[3]] = f'sim::smem_offset(sim::static_smem(&tag_{k.name}[{nst}], {SZ[sm[2]]}, 16))'; nst += 1; continue
            sm = re.match(r'\.local\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]$', st)
            if sm: decl.append(f'alignas(16) unsigned char {sm[2]}[{sm[3]}];'); k.local[sm[2]] = sm[2]; continue
            if st.startswith('.pragma') or st.startswith('.file'): continue
            lm = re.match(r'\.loc (\d+) (\d+)$', st)
            if lm: loc = f'\n#line {lm[2]} "{files.get(lm[1], "?")}"\n'; continue
            pm = re.match(r'@(!?)([%\w]+)\s+(.*)$', st, re.S); pred = ''
            if pm: pred = f'if ({pm[1]}{k.var(pm[2])[0]}) '; st = pm[3]
            om = re.match(r'([a-z][\w.:]*)\s*(.*)$', st, re.S)
            if not om: unknown[st[:60]] = 1; continue
            # forward labels of the enclosing asm block
            if om[1].startswith('bra') and k.scope and not om[2].strip().startswith('$'):
                n = om[2].strip(); k.scope[-1]['labels'].setdefault(n, f'L_{n}_{k.scope[-1]["id"]}')
            try: c = ins(k, om[1], split(om[2]))
            except (Bad, KeyError, AssertionError) as e: unknown[om[1]] = unknown.get(om[1], 0) + 1; c = f'sim::trap("not translated: {om[1]}");'
            k.out.append((loc if len(c) > 30 else '') + (f'{pred}{{ {c} }}' if pred else c))
        print(f'static char tag_{k.name}[{nst + 1}];\nstatic void ptx_{k.name}(void **P) {{ (void)P;\n  ' + '\n  '.join(decl) + '\n  ' + '\n  '.join(k.out) + '\n}')
        print(f'static const uint32_t sizes_{k.name}[] = {{{", ".join(str(p[1]) for p in params) or 0}}};\nstatic sim::Kernel kern_{k.name}{{"{k.name}", ptx_{k.name}, {len(params)}, sizes_{k.name}, nullptr}};\nstatic int reg_{k.name} = (sim_register(&kern_{k.name}), 0);\n')
        kernels.append(k.name)
    print(f'{file}: kernels {kernels}' + (f'; NOT TRANSLATED {unknown}' if unknown else ''), file=sys.stderr)

print('''#include "sim.h"
#include <bit>
using namespace sim;
static inline uint32_t brev(uint32_t v) { uint32_t r = 0; for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i); return r; }
static __attribute__((noinline)) const void *sim_here() { asm volatile(""); return __builtin_return_address(0); }
#define PC sim_here()
#define RA __builtin_return_address(0)
#define DYN sim::smem_offset(sim::dyn_smem())
template <class T, class R> static inline T rd(R r) { if constexpr (sizeof(T) == sizeof(R)) return __builtin_bit_cast(T, r); else if constexpr (std::is_integral_v<T>) return T(r); else { static_assert(sizeof(T) <= sizeof(R)); return __builtin_bit_cast(T, uint32_t(r)); } }
template <class R, class T> static inline void wr(R &r, T v) { if constexpr (std::is_floating_point_v<T>) { if constexpr (sizeof(T) == 4) r = R(__builtin_bit_cast(uint32_t, v)); else r = R(__builtin_bit_cast(uint64_t, v)); } else r = R(v); }
template <class T> static inline T ldp(void *p, int off) { T v; memcpy(&v, (char *)p + off, sizeof v); return v; }
#ifdef SIM_HOOKS   // every load and store of the PTX is checked: bounds, races, uninitialised shared memory
static __attribute__((noinline)) unsigned char *shp(uint64_t a, uint32_t n, bool w) { if (a % n) sim::trap("misaligned shared address"); auto *p = sim::tls.smem + uint32_t(a); sim::access(p, n, w, RA); return p; }
static __attribute__((noinline)) unsigned char *gp(uint64_t a, uint32_t n, bool w) { if (a % n) sim::trap("misaligned address"); auto *p = (unsigned char *)a; sim::access(p, n, w, RA); return p; }
#else
static inline unsigned char *shp(uint64_t a, uint32_t n, bool w) { return sim::smem_ptr(uint32_t(a), n, n, w, nullptr); }
static inline unsigned char *gp(uint64_t a, uint32_t n, bool) { if (a % n) sim::trap("misaligned address"); return (unsigned char *)a; }
#endif
static inline unsigned char *gpa(uint64_t a) { return (unsigned char *)a; }
template <class T> static inline T shl(T v, uint32_t n) { return n >= sizeof(T) * 8 ? T(0) : T(v << n); }
template <class T> static inline T shr(T v, uint32_t n) { if (n >= sizeof(T) * 8) return std::is_signed_v<T> && v < 0 ? T(-1) : T(0); return T(v >> n); }
template <class T> static inline T bfi(T a, T b, uint32_t pos, uint32_t len) { pos &= 255; len &= 255; T m = (len >= sizeof(T) * 8 ? T(~T(0)) : T((T(1) << len) - 1)) << pos; return T((b & ~m) | ((a << pos) & m)); }
template <class T> static inline T bfe(T a, uint32_t pos, uint32_t len) { T v = T(a >> pos); if (len < sizeof(T) * 8) { T m = T((T(1) << len) - 1); v &= m; if (std::is_signed_v<T> && len && (v >> (len - 1) & 1)) v |= ~m; } return v; }
static inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, int t) { uint32_t r = 0; for (int i = 0; i < 8; ++i) if (t >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c); return r; }
static inline uint32_t shfl(uint32_t a, uint32_t b, uint32_t n, bool wrap) { n = wrap ? n & 31 : n > 32 ? 32 : n; return uint32_t(((uint64_t(b) << 32 | a) << n) >> 32); }
static inline uint32_t shfr(uint32_t a, uint32_t b, uint32_t n, bool wrap) { n = wrap ? n & 31 : n > 32 ? 32 : n; return uint32_t((uint64_t(b) << 32 | a) >> n); }
static inline float sat(float x) { return x > 0 ? (x < 1 ? x : 1.f) : 0.f; }      // NaN -> 0, as PTX says
static inline float fma_rm(float a, float b, float c) { double x = double(a) * b + c; float f = float(x); return double(f) > x ? std::nextafterf(f, -INFINITY) : f; }
static inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t s) { uint64_t v = uint64_t(b) << 32 | a; uint32_t r = 0; for (int i = 0; i < 4; ++i) { uint32_t q = s >> 4 * i & 15, x = uint32_t(v >> 8 * (q & 7)) & 255; if (q & 8) x = x & 128 ? 255 : 0; r |= x << 8 * i; } return r; }
static inline uint32_t shfl(int mode, uint32_t v, uint32_t b, uint32_t c, uint32_t mask, bool &pr) {
  int lane = int(sim::tls.lane), bv = b & 31, seg = c >> 8 & 31, cl = c & 31, mx = (lane & seg) | (cl & ~seg), mn = lane & seg, j = 0;
  switch (mode) { case 1: j = lane - bv; pr = j >= mx; break; case 2: j = lane + bv; pr = j <= mx; break; case 3: j = lane ^ bv; pr = j <= mx; break; default: j = mn | (bv & ~seg); pr = j <= mx; }
  if (!pr) j = lane; return sim::shfl_any(mask, v, j);
}
template <class... R> static inline void WG(int n, int scale, uint64_t da, uint64_t db, R &...r) { float d[sizeof...(R)] = {rd<float>(r)...}; sim::wgmma_bf16(d, 64, n * 2, da, db, scale, PC); int i = 0; (wr(r, d[i++]), ...); }
''')
for f in sys.argv[1:]: translate(open(f).read(), f)
