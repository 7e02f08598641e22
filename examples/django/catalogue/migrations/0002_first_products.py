from django.db import migrations


def add(apps, schema_editor):
    Product = apps.get_model("catalogue", "Product")
    for name, price in [("Axe", "49.00"), ("Fork", "3.50")]:
        Product.objects.create(name=name, price=price)


class Migration(migrations.Migration):
    dependencies = [("catalogue", "0001_initial")]
    operations = [migrations.RunPython(add, migrations.RunPython.noop)]
