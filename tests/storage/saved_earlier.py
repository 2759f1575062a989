"""Files as versions wrote them before `sparsebert.storage` had its `CheckedFile`.

Made with commit 4322e68; `tests.storage.test_saved_earlier` says what they hold.
"""

from __future__ import annotations

import base64
import zlib


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


MASK = _unpacked(
    "c-pN~-EPw`6m}_F#Dv-"
    ">m?*vuC~^MkULdx2;A)*B$39u2wMiD6Rb8nBcZlcULEuf`1tu=J1KVlGwoY(^mB=}tkH7D8e9p%{vSWqQbPkFMrd"
    "XQd$qLJcwGuLD)r&ck=XiowQ+x@nEbD5DCnMh-"
    "O|dLk1135l?npnreNW9&)7F<zv5MPuy|>P7;+?OCDFv<N(`1UZQ*3GBBAr1eLkzGeD^V|Oymm)B8)u~`tFv^Q^$!"
    "ZNwg&6wMwXwa1u!9}xMTlgP(US1wKSpkGBDe!xASfC<|o|o(lRYG-"
    "+BOH&}hd{CsROqRw#p5=5tK~vs9K>aDy2&*#Ixu%zD_-s|-"
    "h0w?$oxl!#7vQ3_R<_3$r8wN$k}oxV`HxubiI9#X%>{Sf(#Ep?6j7xqnoktps2az9UeKjdK^#bd#EmW43@B!uxOh"
    "ddc;P)D433G+M_g<SX^Wq}BN5eF1HQ|9#0rniYXr`cGi>Lg0zjO7Ul;~XFiqd1|!f*=%GENH|Dp*;3N4?Leli3or"
    "MgnGJcbm8EvRMK>gP|F5%zq}b^x9bo*(fvVOU5L6ju<fxr&n1}r6VIjb>3Th~<JZtZLv)BJx<KF2*WQPI&*=?%PY"
    "wDEy+ZHMPxPbrt^dV&Kh)5mM4ulYKRHBud&dW_ouh+KkDl)j(b4|GSvc2&>%sl`H?s#TQ2"
)

ODD_MASK = _unpacked(
    "c-l=-u};G<5KW=L$cz}UEW~8cIgXvQ8xuc3CsIY1_$(^gG>Tm$ROKU(_zuL#=aD8Laf|Qy-"
    "n+BkeNCbv_Pi)I6wqS8qTusA_YJn5N@~OH2K@`4^L@@=sr9REo%1=9g5}&lV?zh@)I%kh7EH?Jq0+S5SE{kDhH@{"
    "hw_!+g{?O+64!~8zVI8qPi4CZn4@wMy+Ir+}RyB>+K2YQTM%BCZTCmXWNHDmQ%kK9vu{NX5Xji&Kp>{S#ZLN#}vb"
    "fZ!NK;By$|@!cWu>bM69tfxk}@?gQ%M5Sjx(PLEw#n}#z|(hDxFRpVyYo7Gt6{WDP;f*NJ6lL28_X(lv$<$XHLy}"
    "wyhKqV9q<<30|&(Ke%keTSL9Ki;RoWO+N2GsDu{rQt)9NTjx9-=uaRNEW3^|_8Fa?-"
    "W**`&d)B69w+b7Vsd%Bntq(zN7vKu=m)xvgkS"
)

PLAN = _unpacked(
    "c-p;ITW{k;6t-"
    "EQTz8i{4~sPNQ>%4@J@$;pl|TsbvJ%oFBqXG!vc_{sOcUEXp0rd|B=~2`KUsbWoUxNOX}g6k5+^!xa^`&J_8pJ%&"
    "0AhC=Rr}-"
    "mF1FKUKGK>dC;}obgERw?zb~u2M59VI5<(JtD1To93UK`aiFVuqD*V5+B(}fz$_~xrD&9DB^Z%XE0(01M1&BjQYi"
    "(NWnOZTWtm_srZS0z78#+LQiO_e;KEvNCTbN?w2Q&ml)orps}nWYxlw#LFsf}#?+q0`D`sk_FLh_fC)>a4#k`m*E"
    "<0z6@19FEoh`a%VZ`c4SJo<t$}?1|T1@BM9Cu%WvFJVLja0Kydln+yCNQz@&{t^JeW6fIjM-"
    "j@?9{k=&@NPi_YP2N8lk$bG3ZHc)ol02J@m6`YWMtMeRPR}P_{8*its2-"
    "M$u#FAVincp=cD3q7aE@KCdh)Q&MJH1I8$Y#7yxzL_oPhIKp&4j`uMc`fQcy=j56^gt1=C>@YfV=Tg;OWzU=iQsh"
    "}4(+zPR>Q^NeFq%Re4x=2FCLSeMq$jWe$6=hdnyGF*YS^~HYMRpyRW)jibf)mqvFALdJ;6(7pKv=>2GWXVwwTwwO"
    "Um5ITmjKVHw7|>vZKCH@U4WabJ6=Ibd*6ml&tDYx1C^fk59Q-dy{OG6N>YTcF1}-Y8`KsNANZz`10UN3<k{QF-"
    "f<kS2l}!?GTL;97i<HFQj*|rcwhxhcE&(Yw8K=2lW_DfL?h9k7m(!sL{wxs9!kf8u+^gxHjNT*W05V4X+^Y28PE0"
    "Y*lBGdu5z2uz`9eJG3fz*(2OS6|$N;4DE-"
    "!TIq`yQ#5TgP#h1`0(F?sAqlLpOwuwdWhSW3qga+CrdgsGA(_fDBCr+&^HfPv3eF;oV<j{uOk`Rx*nnjaUcKY?hY"
    "WDlF`8%%!5B<l=RBrKDTItLBb3BgQ>jSAM9yR`C>CX@H7PmaB9>7?N)`pn5bB>59o#O~-"
    "KNr>wF&}1p{dI|<?h#Eauf#rjoWD5DcgZ53UPV_=zczP-o6|hUkAe-mtcnmK3^d>EGeN5ehPc=3V1?8799<(cU#B"
    "=Zy-~49m=5ZtS?<JX0w-"
    "L@eNI9IK)F<H?+H9U0%ipY&DtMJEB>LbGjP%EgdH}f#EGq2d+;mX{UF}48SlQsCHa!rT&R+VDp>6j^`osa3S@V`("
    "}u5pFaKm_Dusk#2`n@CF;dn$@)v=-"
    "7F8U_^svZ)pNXI^Fdz&y$AX_=o_GKg6@F2zb$Wrz61I$=zE~=gWd;yu*&lR=!c*mfqo473FxPwpZyE<{$m_}rJH>"
    "}{2%)I>mTIvRqP#z_Jx;w&%8gqKm6bC`8)o7|B=u9)_>tY_kZ)f&CgZwq4pi9>5<30)_dVS-#-2usQ#~?"
)

DAM = _unpacked(
    "c-obbJxjwt7{?<HLcf5MP;QRU)LPOwxCzdVO}$>5r%mwk;@w4ULqrirK@@Zpg@Ti-"
    "q<#cPKZ29E2pt>*@h(;=sDrm0_kaGs=j~pmwEQFpV;=-"
    "@h#(jvD?vOWj6(~Un0JVeER@)23mEspz(!Wl(2F+WAcPlmxe{bJh<!{+Pny0RN^*fXxl;aQHZg@fhnc?xi`yb*pc"
    "EU45F+Y{zK!x=&zD^>udRa82uf_xu)Tq~*Uyn4rc|jeVa}v02t5v8LaLN55#u5}><FLi*eFG*jvPj|xf<CKy$Ix_"
    "tJMn95qF7t)f>{Gwi0$aa$aeymvplsxx51A0M374Q#Y!LCNy%%B)GCro&XKKEUWyWjjC>z6fVGzfDyI0zmxn@UG`"
    "pSr0MwEwVCn#e0(~*FPsl&n+Mra|1o<{)~!)@(K@^tWV;uIyXn{KT5>iRj?&v&;pnnP*WS!0^U8W?o>+5({Y=yLm"
    "OlV<_`~%"
)

FOLDER_MASKS = _unpacked(
    "c-l>nO-{ow5QP)5=mx<FkRq>xWV?>-<Q}Y=D)P@*t)NNjSglZ%1v{?AQ8)?M2@7n`;(6x1k-pD7Th0x2-"
    "3fxSDyXhQ%?(YX@)KzA;rXPdSJa?ei!R`&<IuOLDM(qgXga77lG;U?9!<4Rt<et`=v8l)e)Nti1n`SD8iVpJS|Z@"
    "wy}=qu)5rDL+u^$C`ELiU_-ccyA{HCDwT?;wh65FB%b5YfT}830j8Yb8O)b}sV8^&)mN8z{Oc-"
    "s~l?RA3zWX0c04upwj2TmNYzP%jNQ*&ODQaNC)uz_KKoDcB!BRM;NhPgN+F@s6%8cd`>0_7@JR9Ceh{#?fDpyFTi"
    "HPE*WyFIP%!6|ir1>2#DcjF;Q4~Lqo9r=r%IfT#eP>_!$6db3AM*QONs)OJ"
)

FOLDER_NOTE = b"""\
{
  "format_version": 1,
  "sparsebert_version": "0.1.0",
  "model_type": "bert",
  "attention_modules": 2,
  "backend": "torch",
  "positions": "sequence",
  "masks_fingerprint": "f931c67e928b4141ed1a99807958e94ca02f9f304f1388a7fbb881670f0065c9"
}
"""
