"""Titles and authors of the papers of methods by name (`objective.methods`), for the citations of a card."""

# arXiv id -> title and authors, as in BibTeX.
CITATIONS = {
    "2505.22617": (
        "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
        "Ganqu Cui and Yuchen Zhang and Jiacheng Chen and Lifan Yuan and Zhi Wang and Yuxin Zuo and Haozhan Li and "
        "Yuchen Fan and Huayu Chen and Weize Chen and Zhiyuan Liu and Hao Peng and Lei Bai and Wanli Ouyang and "
        "Yu Cheng and Bowen Zhou and Ning Ding",
    ),
    "2506.01347": (
        "The Surprising Effectiveness of Negative Reinforcement in {LLM} Reasoning",
        "Xinyu Zhu and Mengzhou Xia and Zhepei Wei and Wei-Lin Chen and Danqi Chen and Yu Meng",
    ),
    "2506.14758": (
        "Reasoning with Exploration: An Entropy Perspective",
        "Daixuan Cheng and Shaohan Huang and Xuekai Zhu and Bo Dai and Wayne Xin Zhao and Zhenliang Zhang and "
        "Furu Wei",
    ),
    "2507.15778": (
        "Stabilizing Knowledge, Promoting Reasoning: Dual-Token Constraints for {RLVR}",
        "Jiakang Wang and Runze Liu and Fuzheng Zhang and Xiu Li and Guorui Zhou",
    ),
    "2508.04349": (
        "{GTPO} and {GRPO-S}: Token and Sequence-Level Reward Shaping with Policy Entropy",
        "Hongze Tan and Zihan Wang and Jianfei Pan and Jinghao Lin and Hao Wang and Yifan Wu and Tao Chen and "
        "Zhihang Zheng and Zhihao Tang and Haihua Yang",
    ),
    "2509.03646": (
        "Emergent Hierarchical Reasoning in {LLMs} through Reinforcement Learning",
        "Haozhe Wang and Qixin Xu and Che Liu and Junhong Wu and Fangzhen Lin and Wenhu Chen",
    ),
    "2509.22611": (
        "Quantile Advantage Estimation: Stabilizing {RLVR} for {LLM} Reasoning",
        "Junkang Wu and Kexin Huang and Jiancan Wu and An Zhang and Xiang Wang and Xiangnan He",
    ),
    "2510.06062": (
        "{ASPO}: Asymmetric Importance Sampling Policy Optimization",
        "Jiakang Wang and Runze Liu and Lei Lin and Wenping Hu and Xiu Li and Fuzheng Zhang and Guorui Zhou and "
        "Kun Gai",
    ),
    "2512.05591": (
        "Entropy Ratio Clipping as a Soft Global Constraint for Stable Reinforcement Learning",
        "Zhenpeng Su and Leiyu Pan and Minxuan Lv and Tiehua Mei and Zijia Lin and Yuntao Li and Wenping Hu and "
        "Ruiming Tang and Kun Gai and Guorui Zhou",
    ),
    "2602.15620": (
        "{STAPO}: Stabilizing Reinforcement Learning for {LLMs} by Silencing Rare Spurious Tokens",
        "Shiqi Liu and Zeyu He and Guojian Zhan and Letian Tao and Zhilong Zheng and Jiang Wu and Yinuo Wang and "
        "Yang Guan and Kehua Sheng and Bo Zhang and Keqiang Li and Jingliang Duan and Shengbo Eben Li",
    ),
    "2603.19835": (
        "{FIPO}: Eliciting Deep Reasoning with Future-{KL} Influenced Policy Optimization",
        "Chiyu Ma and Shuo Yang and Kexin Huang and Jinda Lu and Haoming Meng and Shangshang Wang and Bolin Ding and "
        "Soroush Vosoughi and Guoyin Wang and Jingren Zhou",
    ),
}


def citation(paper: str, methods: str) -> str:
    """Return the BibTeX entry of a paper, without title and authors if they are not known.

    Args:
        paper: arXiv id.
        methods: names of the paper's methods that a run used.
    """
    title, authors = CITATIONS.get(paper, ("", ""))
    known = [f"  title   = {{{title}}},", f"  author  = {{{authors}}},"] if title else []
    fields = [f"  journal = {{arXiv preprint arXiv:{paper}}},", f"  year    = {{20{paper[:2]}}},"]
    return "\n".join(
        [f"@article{{arxiv{paper},", *known, *fields, f"  note    = {{Paper of the method {methods}}}", "}"]
    )
