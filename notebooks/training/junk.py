"""Passages that answer nothing: a group holds one now and then, and its target is nought."""

import random

LITTLE = [
    "",
    "",
    "",
    " ",
    ".",
    "-",
    "N/A",
    "None",
    "null",
    "?",
    "...",
    "0",
    "untitled",
    "Page 1 of 2",
]
BOILERPLATE = [
    "Accept all cookies. Reject all. Manage preferences. We value your privacy.",
    "Sign in to your account. Forgot your password? Create an account.",
    "404. The page that you are looking for could not be found. Go back to the home page.",
    "Share this page: print, mail, copy the link. Last updated on Monday. All rights reserved.",
    "Home. Products. Services. Contact. About us. Careers. Imprint. Terms of use.",
    "Loading, please wait. If nothing happens, enable JavaScript in your browser and reload.",
    "Add to basket. In stock, delivered within three days. Free returns for thirty days.",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt.",
    "Table of contents. Index. References. Notes. See also. External links. Categories.",
    "This article needs more sources. Please help to improve it. This page is a stub.",
    "Subscribe to our newsletter to get the latest news every week. Unsubscribe at any time.",
    "Thank you for your message. We will answer as soon as we can. Kind regards, the team.",
    "1 2 3 4 5 6 7 8 9 10 next last",
    "x y z 0.1 0.2 0.3 0.4 nan inf",
    "asdf qwer zxcv uiop hjkl",
]
FOREIGN = [
    "Der Zug nach Hamburg fährt heute von Gleis sieben ab und hat etwa zehn Minuten Verspätung.",
    "Im Herbst werden die Äpfel im Garten geerntet und zu Saft gepresst.",
    "Die Stadt liegt am Ufer eines großen Flusses und hat viele alte Brücken.",
    "Le marché du village a lieu tous les samedis matin sur la place de l'église.",
    "Les enfants jouent dans le jardin pendant que leurs parents préparent le repas.",
    "La bibliothèque municipale sera fermée pendant les travaux de rénovation.",
    "El mercado abre a las ocho de la mañana y cierra a las dos de la tarde.",
    "Los pescadores salen al mar antes del amanecer y vuelven con la marea.",
    "La receta lleva harina, huevos, leche y un poco de sal.",
    "Il treno per Milano parte dal binario quattro ogni ora fino a mezzanotte.",
    "La nonna prepara il pane ogni domenica con la farina del mulino vicino.",
    "O comboio chega à estação às nove horas e parte dez minutos depois.",
    "A praia fica a dois quilómetros da cidade e tem areia muito fina.",
    "De fietsen staan achter het huis en moeten voor de winter worden gerepareerd.",
    "Het museum is op maandag gesloten, maar de tuin is altijd open.",
    "Tåget till Stockholm går varje timme från den gamla stationen.",
    "Vi plockade blåbär i skogen hela dagen och bakade sedan en paj.",
    "Toget stopper ved alle stationer mellem byen og kysten.",
    "Juna lähtee asemalta kello seitsemän ja saapuu perille illalla.",
    "Pociąg do Krakowa odjeżdża z peronu trzeciego o godzinie szóstej.",
    "W lesie rosną grzyby, a dzieci zbierają jagody do małych koszyków.",
    "Vlak odjíždí z nádraží každou hodinu a cesta trvá dvě hodiny.",
    "Trenul pleacă din gară la ora opt și ajunge la mare spre seară.",
    "A vonat minden órában indul a pályaudvarról a tó felé.",
    "Tren her saat başı istasyondan kalkar ve akşam denize varır.",
    "Поезд отправляется с третьего пути и прибывает в город вечером.",
    "Осенью дети собирают в парке жёлтые листья и делают из них венки.",
    "Потяг вирушає вранці й прибуває до моря наприкінці дня.",
    "Το τρένο φεύγει από τον σταθμό κάθε πρωί και φτάνει το βράδυ.",
    "القطار يغادر المحطة كل صباح ويصل إلى المدينة في المساء.",
    "הרכבת יוצאת מהתחנה בכל בוקר ומגיעה לעיר בערב.",
    "ट्रेन हर सुबह स्टेशन से चलती है और शाम को शहर पहुँचती है।",
    "电车每天早上从车站出发，傍晚到达海边的小城。", "秋天的时候，孩子们在公园里捡黄色的树叶。",
    "電車は毎朝駅を出て、夕方に海の町に着きます。",
    "秋になると子どもたちは公園で落ち葉を拾います。",
    "기차는 매일 아침 역을 떠나 저녁에 바닷가 마을에 도착합니다.",
    "Kereta api berangkat dari stasiun setiap pagi dan tiba di kota pada malam hari.",
    "Tàu rời ga mỗi buổi sáng và đến thành phố vào buổi tối.",
    "รถไฟออกจากสถานีทุกเช้าและถึงเมืองในตอนเย็น",
]  # fmt: skip


def passages(count: int, seed: int) -> list[str]:
    """`count` of them: as they stand, joined by twos, or with their words shaken."""
    rng, whole = random.Random(seed), LITTLE + BOILERPLATE + FOREIGN
    made = list(whole)
    while len(made) < count:
        text = " ".join(rng.sample(BOILERPLATE + FOREIGN, rng.randint(1, 3)))
        words = text.split()
        if rng.random() < 0.5:
            rng.shuffle(words)
        made.append(" ".join(words[: rng.randint(3, 60)]))
    return made
