"""The licences of published weights, by name."""

MIT = 'MIT'  # facebookresearch, ConvNeXt V1
CC_BY_NC = 'CC-BY-NC 4.0'  # facebookresearch, ConvNeXt V2
DINOV3 = 'DINOv3 License'
FAIR_NC = 'FAIR Noncommercial Research License'  # EUPE
BSD = 'BSD-3-Clause'
APACHE = "Apache-2.0; converted weights keep their makers' licence"  # mmpretrain
OF_THE_CARD = f"the model card's; facebookresearch's V1 weights are {MIT}, V2 {CC_BY_NC}"
