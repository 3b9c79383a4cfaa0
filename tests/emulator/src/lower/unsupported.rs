//! Instructions that are PTX and that cannot be executed: each is refused by its family's name.

/// Why a call is refused.
pub(super) const CALLS: &str = "calls are not supported: every function must be inlined (`__forceinline__`), and kernels \
                                must not use printf, assert or malloc";

/// Says why an opcode is refused.
pub(super) fn reason(opcode: &str, callee: Option<&str>) -> String {
    let family = match opcode {
        "call" => {
            return match callee {
                Some(name) => format!("call of `{name}`: {CALLS}"),
                None => CALLS.into(),
            };
        }
        "wgmma" => "warpgroup matrix operations (Hopper, sm_90a)",
        "tcgen05" => "tensor memory operations (Blackwell, sm_100a)",
        "tensormap" | "multimem" | "mapa" | "getctarank" | "clusterlaunchcontrol" => {
            "clusters, multicast and tensor maps (Hopper, sm_90)"
        }
        "tex" | "tld4" | "txq" | "suld" | "sust" | "sured" | "suq" | "istypep" => "textures and surfaces",
        "wmma" => "`wmma` operations (use `mma.sync` and `ldmatrix`)",
        "movmatrix" => "`movmatrix`",
        "alloca" | "stacksave" | "stackrestore" => "a dynamic stack",
        "vadd" | "vsub" | "vabsdiff" | "vmin" | "vmax" | "vshl" | "vshr" | "vmad" | "vset" | "vadd2"
        | "vsub2" | "vavrg2" | "vabsdiff2" | "vmin2" | "vmax2" | "vset2" | "vadd4" | "vsub4" | "vavrg4"
        | "vabsdiff4" | "vmin4" | "vmax4" | "vset4" => "video instructions",
        _ => return format!("unknown instruction `{opcode}`"),
    };
    format!("{family} are not supported")
}
