"""Fine-tune a pretrained network in three lines.

Put the path of your own pictures in the place of "flowers": a folder with one sub-folder of pictures for each class, or
one with train/ and val/ in it, each of which has these sub-folders. The first run downloads the network's weights; with
no connection it says so, and pretrained="weights.pth" takes a file you have.
"""

from headstart import ImageData, Learner

learner = Learner("resnet18", ImageData.from_folder("flowers"))
learner.fit(5, lr=5e-4, head_lr_mult=10)
