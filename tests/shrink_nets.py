"""Small networks to shrink, with norms that have been trained and neurons that have been pruned."""

import torch
import torch.nn.functional as F
from torch import nn


def norm_relu(channels):
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), *norm_relu(16), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1), *norm_relu(24), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(24 * 16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10),
    )  # fmt: skip


class Dense(nn.Module):
    """Each layer reads the concatenation of all before it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(
                *norm_relu(12 + 8 * i), nn.Conv2d(12 + 8 * i, 16, 1, bias=False),
                *norm_relu(16), nn.Conv2d(16, 8, 3, padding=1, bias=False),
            )
            for i in range(3)
        )  # fmt: skip
        self.norm, self.head = nn.BatchNorm2d(36), nn.Linear(36, 10)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.relu(self.norm(torch.cat(features, 1))).mean((2, 3)))


class UNet(nn.Module):
    """Skips that are concatenated, a transposed convolution and an upsampling."""

    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *norm_relu(8))
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), *norm_relu(16))
        self.middle = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.SiLU())
        self.up2 = nn.ConvTranspose2d(24, 16, 2, stride=2)
        self.join2 = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), *norm_relu(16))
        self.join1 = nn.Sequential(nn.Conv2d(24, 8, 3, padding=1), *norm_relu(8))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.up2(self.middle(F.max_pool2d(two, 2)))
        x = self.join2(torch.cat([x, two], 1))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(self.join1(torch.cat([x, one], 1)))


class Separable(nn.Module):
    """Depthwise with a multiplier, groups of several, a channel gate, PReLU."""

    def __init__(self):
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 64, 3, padding=1, groups=32)
        self.act = nn.PReLU(64)
        self.grouped = nn.Conv2d(64, 24, 3, groups=4)
        self.squeeze, self.excite = nn.Linear(24, 6), nn.Linear(6, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.expand(x)))
        x = F.relu(self.grouped(self.act(self.depthwise(x))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        return self.head(x.mean((2, 3)))


def _image_model(name):
    import transformers

    small = {"num_labels": 7}
    vit = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        patch_size=8, image_size=32, **small,
    )  # fmt: skip
    configs = {
        "ResNet-18": lambda: transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 24, 32, 32], depths=[2, 2, 2, 2],
            layer_type="basic", **small,
        ),
        "ResNet-50": lambda: transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 48, 64, 64], depths=[3, 4, 6, 3], **small
        ),
        "MobileNetV2": lambda: transformers.MobileNetV2Config(
            depth_multiplier=0.2, image_size=32, tf_padding=False, **small
        ),
        "MobileNetV2 padded": lambda: transformers.MobileNetV2Config(
            depth_multiplier=0.2, image_size=32, **small
        ),
        "ViT": lambda: transformers.ViTConfig(**vit),
        "ViT eager": lambda: transformers.ViTConfig(**vit, attn_implementation="eager"),
    }  # fmt: skip
    kind = f"{name.split()[0].split('-')[0]}ForImageClassification"
    return getattr(transformers, kind)(configs[name]())


NETS = {
    "VGG": vgg, "DenseNet": Dense, "U-Net": UNet, "separable": Separable,
    **{
        name: lambda name=name: _image_model(name)
        for name in (
            "ResNet-18", "ResNet-50", "MobileNetV2", "MobileNetV2 padded", "ViT", "ViT eager",
        )
    },
}  # fmt: skip
IMAGE = 32


def make(name, seed=0):
    """A network whose norms have been trained: their constants are not zero."""
    torch.manual_seed(seed)
    model = NETS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def layers_of(model):
    kinds = nn.Linear, nn.modules.conv._ConvNd
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds)}


def zero(layer, neurons):
    """Zero the weights of ``neurons``; their biases stay."""
    dim = int(isinstance(layer, nn.ConvTranspose2d))
    with torch.no_grad():
        layer.weight.index_fill_(dim, torch.as_tensor(neurons), 0)


def prune(model, share=0.5, seed=1):
    """Zero ``share`` of the neurons of each layer but the last, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for layer in list(layers_of(model).values())[:-1]:
        size = layer.weight.shape[int(isinstance(layer, nn.ConvTranspose2d))]
        zero(layer, torch.randperm(size, generator=generator)[: int(share * size)])
    return model


def outputs(model, x):
    with torch.no_grad():
        y = model(x)
    return y if isinstance(y, torch.Tensor) else y.logits


def difference(found, wanted):
    """Largest difference, relative to the largest output."""
    return float((found - wanted).abs().max() / wanted.abs().max())
